//! Reads the `sw8` header: SkyWalking Cross Process Propagation Headers Protocol v3.
//!
//! Eight fields joined by `-`: sample flag, trace id*, parent segment id*, parent span id, parent
//! service*, parent instance*, parent endpoint*, address used by the client* (* = base64).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::model::Sw8;

/// Longest field accepted after decoding, in bytes: OAP's columns are shorter.
const FIELD_MAX_BYTES: usize = 512;

/// Parses the header's value; `None` if it is not a whole, well-formed context.
#[must_use]
pub fn parse(value: &str) -> Option<Sw8> {
    let mut fields = value.split('-');
    let sampled = match fields.next()? {
        "0" => false,
        "1" => true,
        _ => return None,
    };
    let mut text = || decode(fields.next()?);
    let (trace_id, parent_segment_id) = (text()?, text()?);
    let parent_span_id = fields.next()?.parse().ok().filter(|&id: &i32| id >= 0)?;
    let mut text = || decode(fields.next()?);
    let sw8 = Sw8 {
        sampled,
        trace_id,
        parent_segment_id,
        parent_span_id,
        parent_service: text()?,
        parent_instance: text()?,
        parent_endpoint: text()?,
        address: text()?,
    };
    (fields.next().is_none() && !sw8.trace_id.is_empty() && !sw8.parent_segment_id.is_empty())
        .then_some(sw8)
}

fn decode(field: &str) -> Option<String> {
    if field.len() > FIELD_MAX_BYTES * 4 / 3 + 4 {
        return None;
    }
    String::from_utf8(STANDARD.decode(field).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(fields: [&str; 8]) -> String {
        let mut parts: Vec<String> = Vec::new();
        for (index, field) in fields.into_iter().enumerate() {
            parts.push(if matches!(index, 0 | 3) {
                field.to_owned()
            } else {
                STANDARD.encode(field)
            });
        }
        parts.join("-")
    }

    /// Check that all eight fields of a context arrive in their places.
    #[test]
    fn a_context_gives_its_eight_fields() {
        let sw8 = parse(&header([
            "1", "trace-1", "seg.1", "4", "web", "web-1", "GET:/x", "shop:80",
        ]))
        .unwrap();
        assert!(sw8.sampled);
        assert_eq!(
            (sw8.trace_id.as_str(), sw8.parent_segment_id.as_str()),
            ("trace-1", "seg.1")
        );
        assert_eq!(
            (sw8.parent_span_id, sw8.parent_endpoint.as_str()),
            (4, "GET:/x")
        );
        assert_eq!(
            (sw8.parent_service.as_str(), sw8.parent_instance.as_str()),
            ("web", "web-1")
        );
        assert_eq!(sw8.address, "shop:80");
    }

    /// Check that malformed contexts are refused as a whole.
    #[test]
    fn malformed_contexts_are_refused() {
        let good = header(["1", "t", "s", "4", "a", "b", "c", "d"]);
        assert!(parse(&good).is_some());
        for bad in [
            String::new(),
            good.replacen('1', "2", 1),
            format!("{good}-x"),
            good.rsplit_once('-').unwrap().0.to_owned(),
            header(["1", "t", "s", "-4", "a", "b", "c", "d"]),
            header(["1", "", "s", "4", "a", "b", "c", "d"]),
            "1-!!-!!-3-!!-!!-!!-!!".to_owned(),
        ] {
            assert_eq!(parse(&bad), None, "{bad}");
        }
    }
}
