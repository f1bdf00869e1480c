//! Which request lines an endpoint matches, and that the kernel's prefilter refuses none of them.

use profiler_common::{line_of, line_status};

use super::*;
use crate::request::RequestHead;

fn hits(endpoint: &str, method: &str, target: &str) -> bool {
    let head = format!("{method} {target} HTTP/1.1\r\n\r\n");
    wire_hits(&Endpoint::parse(endpoint).unwrap(), head.as_bytes())
}

/// Whether an endpoint matches a head as it is on the wire; the kernel side must let it pass then.
fn wire_hits(endpoint: &Endpoint, head: &[u8]) -> bool {
    let matched = RequestHead::parse(head)
        .is_some_and(|head| endpoint.matches(&head.method, &head.target, head.host.as_deref()));
    if matched {
        let line = line_of(head);
        let passes = endpoint.rule().to_kernel().is_some_and(|rule| {
            rule.passes(line, |index| head.get(index as usize).copied().unwrap_or(0))
        });
        let text = head.escape_ascii();
        assert_eq!(line.status(), line_status::WHOLE, "{text}");
        assert!(passes, "{text} is {} but is refused", endpoint.as_str());
    }
    matched
}

/// Check that the kernel's prefilter lets pass whatever an endpoint matches: each way to put some pieces together
/// that are encoded, reserved, no UTF-8 or the end of a path.
#[test]
fn the_prefilter_passes_what_matches() {
    const PIECES: &[&[u8]] = &[
        b"a",
        b"%61",
        b"b",
        b"/",
        b"%2f",
        b";v",
        b"?q",
        b"%",
        b"%25",
        b"\xc3\xa9",
        b"%C3%a9",
        b"\xe9",
        b"@",
    ];
    const ENDPOINTS: &[&str] = &[
        "*",
        "/",
        "GET:/a",
        "/a/b",
        "/a%2Fb",
        "/a;v",
        "/a?q",
        "/é",
        "/aé/b",
        "/%E9a",
        "/a%",
        "/a%25",
        "/{x}",
        "/a{x}",
        "/{x}b/a",
        "/a/*",
        "/é/{x}",
        "/@a",
        "PROPFIND:/a",
        "http://h/a",
        "/a@get",
    ];
    let endpoints: Vec<_> = ENDPOINTS
        .iter()
        .map(|text| Endpoint::parse(text).unwrap())
        .collect();
    let mut matched = vec![0; endpoints.len()];
    for number in 0..PIECES.len().pow(4) {
        let mut path = b"/".to_vec();
        let mut rest = number;
        // Fewer pieces come as those with a zero in front.
        while rest > 0 {
            path.extend(PIECES[rest % PIECES.len()]);
            rest /= PIECES.len();
        }
        for begin in [&b"GET "[..], b"PROPFIND ", b"get HTTP://h"] {
            let head = [begin, &path, b" HTTP/1.1\r\nHost: H\r\n\r\n"].concat();
            for (endpoint, matched) in endpoints.iter().zip(&mut matched) {
                *matched += u32::from(wire_hits(endpoint, &head));
            }
        }
    }
    for (endpoint, matched) in ENDPOINTS.iter().zip(matched) {
        assert!(matched > 2, "{endpoint} matched {matched} heads");
    }
}

/// Check that method and path are compared exactly and the query is ignored.
#[test]
fn method_and_path_match_exactly_without_query() {
    assert!(hits("POST:/", "POST", "/"));
    assert!(hits("POST:/", "POST", "/?a=1"));
    assert!(hits("POST /", "POST", "/") && hits("post  /x y", "POST", "/x%20y"));
    assert!(!hits("POST /", "GET", "/"));
    assert!(!hits("POST:/", "GET", "/"));
    assert!(!hits("POST:/", "POST", "/x"));
    assert!(!hits("GET:/busy", "GET", "/busy/"));
    assert!(!hits("GET:/busy", "GET", "/busybody"));
    assert!(hits("get:/busy", "GET", "/busy"));
}

/// Check the forms other agents give endpoint names.
#[test]
fn forms_of_other_agents_are_understood() {
    assert!(hits("{GET}/orders", "GET", "/orders"));
    assert!(!hits("{GET}/orders", "POST", "/orders"));
    assert!(hits("/orders@get", "GET", "/orders"));
    assert!(!hits("/orders@get", "PUT", "/orders"));
    assert!(hits("/orders", "DELETE", "/orders?x"));
    assert!(hits("/mail/a@b.c", "GET", "/mail/a@b.c"));
    assert!(hits("Netty-http:/x?y=1", "GET", "/x?y=1"));
    assert!(!hits("Netty-http:/x?y=1", "GET", "/x"));
    assert!(hits("*", "OPTIONS", "*"));
    assert!(hits("GET:*", "GET", "/any"));
}

/// Check that placeholders stand for one segment and a catch-all for the rest.
#[test]
fn templates_match_by_segment() {
    for endpoint in [
        "GET:/users/{id}/cart",
        "GET:/users/:id/cart",
        "GET:/users/<id>/cart",
    ] {
        assert!(hits(endpoint, "GET", "/users/42/cart"));
        assert!(!hits(endpoint, "GET", "/users/42/43/cart"));
        assert!(!hits(endpoint, "GET", "/users//cart"));
        assert!(!hits(endpoint, "GET", "/users/42"));
    }
    assert!(hits("GET:/f/{name}.json", "GET", "/f/a.json"));
    assert!(!hits("GET:/f/{name}.json", "GET", "/f/.json"));
    assert!(hits("GET:/static/*path", "GET", "/static/a/b/c.js"));
    assert!(hits("GET:/static/{*path}", "GET", "/static/x"));
    assert!(!hits("GET:/static/**", "GET", "/other/x"));
    assert!(hits("GET:/a/{id:[0-9]+}", "GET", "/a/7;v=1"));
}

/// Check that encoded targets equal decoded names, and that an encoded slash stays in its segment.
#[test]
fn percent_encoding_is_decoded_but_never_separates() {
    assert!(hits("GET:/café", "GET", "/caf%C3%A9"));
    assert!(hits("GET:/busy", "GET", "/%62usy"));
    assert!(hits("GET:/a b", "GET", "/a%20b"));
    assert!(!hits("GET:/a/b", "GET", "/a%2Fb"));
    assert!(hits("GET:/a/{x}", "GET", "/a/b%2Fc"));
    for target in ["/caf%C3%A9", "/caf%c3%a9", "/café", "/c%61f%C3%a9"] {
        for endpoint in ["/café", "/caf%c3%a9", "/caf%C3%A9", "/%63afé"] {
            assert!(hits(endpoint, "GET", target), "{endpoint} {target}");
        }
    }
    assert!(!hits("/café", "GET", "/caf%E9"), "latin-1 is another path");
    assert!(hits("/a%2fb", "GET", "/a%2Fb"));
    assert!(!hits("/a%252Fb", "GET", "/a%2Fb"));
    assert!(hits("/100%", "GET", "/100%25"));
}

/// Check absolute-form targets, with and without a host in the endpoint.
#[test]
fn absolute_targets_are_cut_to_their_path() {
    assert!(hits("GET:/x", "GET", "http://shop:80/x?q"));
    assert!(hits("GET:/", "GET", "http://shop"));
    assert!(hits("GET:http://shop:80/x", "GET", "http://shop:80/x"));
    let endpoint = Endpoint::parse("GET:http://shop/x").unwrap();
    assert!(endpoint.matches("GET", "/x", Some("shop")));
    assert!(!endpoint.matches("GET", "/x", Some("other")));
}

/// Check that a name cut by an agent at 150 characters matches what it was cut from.
#[test]
fn a_name_of_150_characters_matches_by_prefix() {
    let long = format!("GET:/{}", "a".repeat(200));
    let cut: String = long.chars().take(150).collect();
    assert!(hits(&cut, "GET", &long[4..]));
}

/// Check that what cannot stand in a request line is refused with a way out.
#[test]
fn names_without_a_path_are_refused() {
    assert_eq!(Endpoint::parse("  "), Err(EndpointError::Empty));
    let rpc = Endpoint::parse("shop.Cart.Add").unwrap_err().to_string();
    assert!(rpc.contains("METHOD:/path"), "{rpc}");
    let method = Endpoint::parse("GTE:/x").unwrap_err().to_string();
    assert!(method.contains("did you mean `GET`"), "{method}");
    assert!(Endpoint::parse("G T:/x").is_err());
    assert!(Endpoint::parse("ftp://host/x").is_err());
}

/// Check that parameters do not belong to a path, in a template or without one, unless the endpoint has them.
#[test]
fn parameters_do_not_belong_to_a_path() {
    assert!(hits("GET:/x", "GET", "/x;jsessionid=1"));
    assert!(hits("GET:/x", "GET", "/x;jsessionid=1?q"));
    assert!(hits("GET:/a/b", "GET", "/a;v=1;w/b;x"));
    assert!(hits("GET:/a/{x}/b", "GET", "/a;v=1/7;x/b"));
    assert!(!hits("GET:/x", "GET", "/xy;jsessionid=1"));
    assert!(!hits("GET:/x", "GET", "/x%3Bjsessionid=1"));
    assert!(hits("GET:/x;v=1", "GET", "/x;v=1"));
    assert!(!hits("GET:/x;v=1", "GET", "/x"));
}

/// Check that a path in no UTF-8 is a path, under the name that it would have in percent-encoding.
#[test]
fn a_path_in_latin_1_is_matched_by_its_bytes() {
    let head = b"GET /caf\xe9 HTTP/1.1\r\nHost: shop\r\n\r\n";
    for (endpoint, matches) in [
        ("*", true),
        ("GET:/{x}", true),
        ("GET:/caf%E9", true),
        ("GET:/caf%e9", true),
        ("GET:/café", false),
    ] {
        let endpoint = Endpoint::parse(endpoint).unwrap();
        assert_eq!(wire_hits(&endpoint, head), matches, "{endpoint:?}");
    }
    assert_eq!(RequestHead::parse(head).unwrap().path(), "/caf%E9");
}

/// Check that any token is a method, and that a request's is compared with regard to case, an endpoint's not.
#[test]
fn any_token_is_a_method() {
    for method in [
        "PROPFIND",
        "REPORT",
        "MKCOL",
        "PURGE",
        "VERSION-CONTROL",
        "M-SEARCH",
    ] {
        assert!(hits("*", method, "/dav"));
        assert!(hits("/dav", method, "/dav"));
        assert!(hits(&format!("{method}:/dav"), method, "/dav"));
        assert!(hits(
            &format!("{}:/dav", method.to_lowercase()),
            method,
            "/dav"
        ));
        assert!(!hits("GET:/dav", method, "/dav"));
        assert!(!hits("LOCK:/dav", method, "/dav"));
    }
    assert!(hits("/dav@propfind", "PROPFIND", "/dav"));
    assert!(hits("{REPORT}/dav", "REPORT", "/dav"));
    assert!(hits("*", "get", "/x"));
    assert!(!hits("GET:/x", "get", "/x"));
    assert!(hits("*", "CONNECT", "shop:443"));
    assert!(hits("*", &"M".repeat(31), "/x"));
}

/// Check that scheme and host are compared without regard to case, the path with it.
#[test]
fn scheme_and_host_have_no_case() {
    assert!(hits("GET:http://Shop/x", "GET", "HTTP://sHOP/x"));
    assert!(!hits("GET:http://shop/x", "GET", "http://shop/X"));
    assert!(hits("GET:/x", "GET", "HTTPS://shop/x?q"));
}
