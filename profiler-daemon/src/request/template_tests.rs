use super::*;

fn name(path: &str) -> String {
    Templates::default().name("shop", "GET", path).unwrap()
}

/// Check which segments are ids, by what people and frameworks put into paths.
#[test]
fn ids_become_templates() {
    for (path, template) in [
        ("/orders/17", "/orders/{id}"),
        ("/orders/17/items/3", "/orders/{id}/items/{id}"),
        ("/orders/-1", "/orders/{id}"),
        ("/days/2026-11-30", "/days/{id}"),
        ("/at/2026-11-30T10:30:00Z", "/at/{id}"),
        ("/hosts/192.168.0.1", "/hosts/{id}"),
        ("/u/123e4567-e89b-12d3-a456-426614174000", "/u/{id}"),
        ("/u/abcdefab-cdef-abcd-efab-cdefabcdefab", "/u/{id}"),
        ("/commit/9f86d081", "/commit/{id}"),
        ("/commit/0x1F", "/commit/{id}"),
        ("/t/dQw4w9WgXcQ7fK2mPz9a", "/t/{id}"),
        ("/t/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.x", "/t/{id}"),
        ("/users/ann@example.org", "/users/{id}"),
        ("/users/ann%40example.org", "/users/{id}"),
        ("/files/17.json", "/files/{id}.json"),
        ("/static/app.9f86d081.js", "/static/app.{id}.js"),
        ("/static/app-9f86d081.css", "/static/app-{id}.css"),
        ("/orders/17;jsessionid=ab", "/orders/{id}"),
    ] {
        assert_eq!(name(path), format!("GET:{template}"), "{path}");
    }
    assert_eq!(name(&format!("/x/{}", "long".repeat(20))), "GET:/x/{id}");
}

/// Check that words stay, versions of an interface among them.
#[test]
fn words_stay() {
    for path in [
        "/",
        "/orders",
        "/orders/",
        "//a",
        "/api/v2/orders",
        "/facade/deadbeef",
        "/api/GetUserAccountInformationV2",
        "/how-to-write-a-very-long-title",
        "/@scope/package",
        "/favicon.ico",
        "/robots.txt",
        "/é/ü",
    ] {
        assert_eq!(name(path), format!("GET:{path}"), "{path}");
    }
}

/// Check that a route has one name, however its path is written on the wire.
#[test]
fn a_route_has_one_name() {
    for (one, other) in [
        ("/%41", "/A"),
        ("/%C3%A9", "/é"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%20b", "/a%20b"),
        ("/a;x=1/b", "/a/b"),
    ] {
        assert_eq!(name(one), name(other), "{one}");
    }
}

/// Check that rules come first, in their order, for their service alone.
#[test]
fn rules_decide_first() {
    let templates = Templates::new([
        ("shop", "/files/**"),
        ("*", "/users/{name}"),
        ("shop", "/users/*"),
    ])
    .unwrap();
    let name = |service, path| templates.name(service, "PUT", path).unwrap();
    assert_eq!(name("shop", "/files/a/b/17"), "PUT:/files/**");
    assert_eq!(name("other", "/files/a"), "PUT:/files/a");
    assert_eq!(name("other", "/users/ann"), "PUT:/users/{name}");
    assert_eq!(name("shop", "/users/ann"), "PUT:/users/{name}");
    assert_eq!(name("shop", "/users/ann/b"), "PUT:/users/*");
    for bad in ["files", "/a?b", &"/x".repeat(80)] {
        assert!(Templates::new([("*", bad)]).is_err(), "{bad}");
    }
}

/// Check that what has no path, or a method that no task can name, has no name.
#[test]
fn what_no_task_can_name_has_no_name() {
    let templates = Templates::default();
    for (method, path) in [
        ("OPTIONS", "*"),
        ("CONNECT", "host:443"),
        ("GETT", "/"),
        ("", "/"),
        ("http", "//host/a"),
        ("Netty-http", "/a"),
        ("GET", ""),
    ] {
        assert_eq!(templates.name("s", method, path), None, "{method} {path}");
    }
    assert!(templates.name("s", "PURGE", "/").is_some());
}

/// Check of paths made of all kinds of pieces that their names are short, plain, stay what they are when they are read
/// again, and match the request that they name.
#[test]
fn a_name_matches_its_request() {
    const PIECES: &[&str] = &[
        "/", "//", "a", "orders", "17", "{id}", "{", "}", "*", "**", "{*x}", ":x", "<x>", ";p=1",
        "%", "%2F", "%25", "%3F", "%3B", "%00", "%ff", "\u{1b}", "\n", "\u{7f}", "é", "\u{202e}",
        "@", "@get", ".", "..", ".js", "'", "\"", "&", "+", "~", "|", "\\", "#", "9f86d081",
    ];
    // A linear congruential generator: the same paths each time.
    let mut state = 1_u64;
    let mut draw = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % below
    };
    let mut named = 0;
    for _ in 0..20_000 {
        let count = 1 + draw(24);
        let pieces: String = (0..count).map(|_| PIECES[draw(PIECES.len())]).collect();
        let path = format!("/{pieces}");
        let name = name(&path);
        assert!(name.chars().count() <= NAME_MAX_CHARS, "{name}");
        assert!(!name.chars().any(char::is_control), "{name:?}");
        let endpoint = Endpoint::parse(&name).unwrap();
        assert_eq!(endpoint.as_str(), name, "{path:?}");
        assert!(endpoint.matches("GET", &path, None), "{path:?} {name}");
        named += 1;
    }
    assert_eq!(named, 20_000);
}

/// Check that long and deep paths are named by their beginning.
#[test]
fn long_paths_are_cut_at_a_segment() {
    let long = format!("/{}", "word/".repeat(1_600));
    let name = name(&long);
    assert!(
        name.starts_with("GET:/word/word/") && name.ends_with("/word/**"),
        "{name}"
    );
    assert!(name.chars().count() <= NAME_MAX_CHARS);
    assert!(Endpoint::parse(&name).unwrap().matches("GET", &long, None));
}

/// Check that a request to a task for one path is called as the task says, and any other by its own endpoint.
#[test]
fn a_request_has_the_name_of_its_endpoint() {
    let templates = Templates::new([("shop", "/files/**")]).unwrap();
    for (task, target, name) in [
        ("/", "/", "/"),
        ("{POST}/a", "/a", "{POST}/a"),
        ("POST /a", "/a", "POST:/a"),
        ("post /a", "/a", "POST:/a"),
        ("*", "/", "POST:/"),
        ("/*", "/a/b", "POST:/a/b"),
        ("POST:/**", "/orders/17?x=1", "POST:/orders/{id}"),
        ("http://host/", "/", "POST:/"),
        ("/a?x=1", "/a?x=1", "POST:/a"),
        ("/orders/{order}", "/orders/17", "POST:/orders/{id}"),
        ("/users/{user}", "/users/ann", "POST:/users/{user}"),
        ("/files/{file}", "/files/a", "POST:/files/**"),
        ("*", "*", "POST:%2A"),
    ] {
        let task = Endpoint::parse(task).unwrap();
        let head = RequestHead {
            method: "POST".to_owned(),
            target: target.to_owned(),
            ..RequestHead::default()
        };
        assert_eq!(templates.name_of(&task, "shop", &head), name, "{task:?}");
    }
}
