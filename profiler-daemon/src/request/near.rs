//! Says which known endpoints are near one that nobody has asked for.

use super::endpoint::Endpoint;

/// Likenesses below it are no likeness (Jaro-Winkler, 0 to 1).
const LIKENESS_MIN: f64 = 0.7;
/// Endpoints named in one sentence.
const NAMED_MAX: usize = 3;

/// A sentence, unless nothing is known or one of the known endpoints is what was given.
#[must_use]
pub fn unasked_endpoint(given: &str, known: &[String]) -> Option<String> {
    let endpoint = Endpoint::parse(given).ok()?;
    if known.is_empty() || known.iter().any(|known| is_asked(given, &endpoint, known)) {
        return None;
    }
    let near = nearest(given, known);
    let (what, names) = if near.is_empty() {
        (
            "seen were",
            known.iter().map(String::as_str).take(NAMED_MAX).collect(),
        )
    } else {
        ("near are", near)
    };
    let more = known.len().saturating_sub(names.len());
    let more = match more {
        0 => String::new(),
        more => format!(" ({more} others)"),
    };
    Some(format!(
        "no request to {given} has been seen; {what} {}{more}",
        names.join(", ")
    ))
}

/// Whether requests to the one may be to the other.
fn is_asked(given: &str, endpoint: &Endpoint, known: &str) -> bool {
    let matches = |endpoint: &Endpoint, other: &str| {
        let (method, path) = other.split_once(":/").map_or((None, other), |(method, _)| {
            (Some(method), &other[method.len() + 1..])
        });
        // Without a method of its own it is of each.
        endpoint.matches(method.unwrap_or("GET"), path, None)
    };
    let of_known = |known: Endpoint| matches(&known, given);
    given == known || matches(endpoint, known) || Endpoint::parse(known).is_ok_and(of_known)
}

/// Those that are most like it, the most likely first; the method counts less than the path.
fn nearest<'a>(given: &str, known: &'a [String]) -> Vec<&'a str> {
    fn path(name: &str) -> &str {
        name.find('/').map_or(name, |at| &name[at..])
    }
    let likeness = |name: &str| {
        let whole = strsim::jaro_winkler(given, name);
        whole.max(strsim::jaro_winkler(path(given), path(name)))
    };
    let rated = known.iter().map(|name| (likeness(name), name.as_str()));
    let mut rated: Vec<(f64, &str)> = rated.filter(|rated| rated.0 >= LIKENESS_MIN).collect();
    rated.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    rated
        .into_iter()
        .take(NAMED_MAX)
        .map(|rated| rated.1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(given: &str) -> Option<String> {
        let known = ["GET:/orders/{id}", "POST:/orders", "GET:/health"].map(str::to_owned);
        unasked_endpoint(given, &known)
    }

    /// Check that a slip finds what was meant, whatever form it has.
    #[test]
    fn the_nearest_are_named() {
        let text = sentence("POST:/order").unwrap();
        assert!(text.contains("near are POST:/orders"), "{text}");
        let text = sentence("/helth").unwrap();
        assert_eq!(
            text,
            "no request to /helth has been seen; near are GET:/health (2 others)"
        );
        let text = sentence("GET:/zzz").unwrap();
        assert!(text.contains("GET:/"), "{text}");
    }

    /// Check that nothing is said of what is known in another spelling, and where nothing is known.
    #[test]
    fn what_is_known_is_not_doubted() {
        for given in [
            "POST:/orders",
            "/orders",
            "POST /orders",
            "GET:/orders/17",
            "GET:/orders/{x}",
            "*",
        ] {
            assert_eq!(sentence(given), None, "{given}");
        }
        assert_eq!(unasked_endpoint("/a", &[]), None);
    }
}
