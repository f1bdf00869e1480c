//! Whether a request was meant for this server: no page of the web may ask it.
//!
//! In:  `Host` and `Origin` of a request
//! Out: whether it is answered
//! Lost: nothing
//!
//! # Why
//!
//! A web page that somebody opens on this host may send requests to servers here. It cannot read the answers of
//! another origin, but its own name may be made to stand for an address here after it was loaded (DNS rebinding), and
//! then this server is its origin. The browser still sends that name as `Host`.
//!
//! - A literal address is accepted, whichever it is: the origin of such a page is the address, and an address
//!   cannot be made to stand for another one. So the probes of Kubernetes, which name the pod's address, and
//!   Prometheus need no configuration.
//! - `localhost` is accepted, as browsers and resolvers do not ask a name server for it; so is the name of this
//!   host, which a page can have only if it was loaded from here.
//! - Other names are accepted if they are configured (`host_names`).
//! - A request without `Host` does not come from a browser.
//! - `Origin` is accepted if it is where the request goes to, or a configured name, on any port.

use std::net::IpAddr;

use hyper::header::{HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::http::uri::{Authority, Uri};
use hyper::{Request, StatusCode};

const PORT_OF_HTTP: u16 = 80;
const PORT_OF_HTTPS: u16 = 443;

/// Names by which a server may be asked.
#[derive(Clone, Debug, Default)]
pub(super) struct HostNames {
    configured: Vec<String>,
    own: Option<String>,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

impl HostNames {
    /// These names, and that of this host.
    pub(super) fn new(configured: &[String]) -> Self {
        let own = nix::unistd::gethostname();
        Self {
            configured: configured.iter().map(|name| normal(name)).collect(),
            own: own.ok().and_then(|name| Some(normal(name.to_str()?))),
        }
    }

    /// Checks where a request goes to and where it comes from.
    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<(), Foreign> {
        let headers = request.headers();
        let host = single(headers, HOST).map_err(|()| bad_host("two Host headers"))?;
        let host = host.map(authority).transpose();
        let host = host.map_err(|()| bad_host("a Host header that is no host"))?;
        // A request to a proxy names its target in the first line.
        for target in host.iter().chain(request.uri().authority()) {
            if !self.is_ours(target.host()) {
                return Err(Foreign {
                    status: StatusCode::MISDIRECTED_REQUEST,
                    text: format!(
                        "this server is not asked as {:?}: ask it by its address, as localhost, or add the name to \
                         host_names in the configuration of profilerd",
                        target.host()
                    ),
                });
            }
        }
        let origin = single(headers, ORIGIN).map_err(|()| foreign_origin("two origins"))?;
        match origin {
            Some(origin) => self.check_origin(origin, host.as_ref()),
            None => Ok(()),
        }
    }

    fn check_origin(&self, origin: &HeaderValue, host: Option<&Authority>) -> Result<(), Foreign> {
        let text = String::from_utf8_lossy(origin.as_bytes());
        let refused = || foreign_origin(&text);
        let uri: Uri = text.parse().map_err(|_| refused())?;
        let usual = match uri.scheme_str() {
            Some("http") => PORT_OF_HTTP,
            Some("https") => PORT_OF_HTTPS,
            _ => return Err(refused()),
        };
        let origin = uri.authority().ok_or_else(refused)?;
        let place = |it: &Authority| (normal(it.host()), it.port_u16().unwrap_or(usual));
        let is_same = host.is_some_and(|host| place(host) == place(origin));
        if is_same || self.configured.contains(&normal(origin.host())) {
            return Ok(());
        }
        Err(refused())
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = normal(host);
        let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
        address.is_ok()
            || name == "localhost"
            || self.own.as_ref() == Some(&name)
            || self.configured.contains(&name)
    }
}

/// A name without what makes no difference.
fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The only value of a header, if there is one.
fn single(
    headers: &HeaderMap,
    name: hyper::header::HeaderName,
) -> Result<Option<&HeaderValue>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(()),
    }
}

fn authority(value: &HeaderValue) -> Result<Authority, ()> {
    let authority = Authority::try_from(value.as_bytes()).map_err(|_| ())?;
    // `user@host` is none of the forms of this header.
    match authority.as_str().contains('@') {
        true => Err(()),
        false => Ok(authority),
    }
}

fn bad_host(what: &str) -> Foreign {
    Foreign {
        status: StatusCode::BAD_REQUEST,
        text: format!("the request has {what}"),
    }
}

fn foreign_origin(origin: &str) -> Foreign {
    Foreign {
        status: StatusCode::FORBIDDEN,
        text: format!(
            "pages of {origin:?} may not ask this server: add its name to host_names in the configuration of profilerd \
             if they should"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(names: &[&str], uri: &str, headers: &[(&str, &str)]) -> u16 {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let checked = HostNames::new(&names).check(&request);
        checked.err().map_or(200, |refused| refused.status.as_u16())
    }

    /// Check which names a request may go to: literal addresses, names of this host, configured ones.
    #[test]
    fn a_request_names_this_server() {
        let own = nix::unistd::gethostname().unwrap();
        let own = own.to_str().unwrap();
        for host in [
            "127.0.0.1:22800",
            "127.0.0.1",
            "10.1.2.3:9464",
            "[::1]:1",
            "[2001:db8::1]",
            "localhost",
            "LocalHost.:22800",
            own,
            "prometheus.example:1",
        ] {
            let names = ["Prometheus.example."];
            assert_eq!(status(&names, "/", &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example:22800",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evil-localhost",
            "0x7f000001",
            "2130706433",
        ] {
            assert_eq!(status(&["a"], "/", &[("host", host)]), 421, "{host}");
        }
        for host in ["", "a b", "x@127.0.0.1", "http://127.0.0.1", "127.0.0.1/"] {
            assert_eq!(status(&[], "/", &[("host", host)]), 400, "{host}");
        }
        assert_eq!(status(&[], "/", &[]), 200);
        let two = [("host", "127.0.0.1"), ("host", "evil.example")];
        assert_eq!(status(&[], "/", &two), 400);
        let proxied = [("host", "127.0.0.1")];
        assert_eq!(status(&[], "http://evil.example/", &proxied), 421);
        assert_eq!(status(&[], "http://127.0.0.1/", &proxied), 200);
    }

    /// Check that a page may ask the server that it came from, and that others may by name only.
    #[test]
    fn a_foreign_origin_is_refused() {
        let with = |host: &str, origin: &str| {
            status(&["ui.example"], "/", &[("host", host), ("origin", origin)])
        };
        for (host, origin) in [
            ("127.0.0.1:12800", "http://127.0.0.1:12800"),
            ("localhost:12800", "http://LOCALHOST:12800"),
            ("127.0.0.1", "http://127.0.0.1:80"),
            ("127.0.0.1:443", "https://127.0.0.1"),
            ("127.0.0.1:12800", "https://ui.example"),
            ("ui.example:80", "http://ui.example:8080"),
        ] {
            assert_eq!(with(host, origin), 200, "{host} {origin}");
        }
        for (host, origin) in [
            ("127.0.0.1:12800", "http://evil.example:12800"),
            ("127.0.0.1:12800", "http://127.0.0.1:3000"),
            ("localhost:12800", "http://localhost:3000"),
            ("localhost:12800", "http://127.0.0.1:12800"),
            ("127.0.0.1:12800", "null"),
            ("127.0.0.1:12800", "file://"),
            ("127.0.0.1:12800", "ftp://127.0.0.1:12800"),
            ("127.0.0.1:12800", "127.0.0.1:12800"),
            ("127.0.0.1:12800", ""),
            ("127.0.0.1:12800", "http://sub.ui.example"),
        ] {
            assert_eq!(with(host, origin), 403, "{host} {origin}");
        }
        assert_eq!(status(&[], "/", &[("origin", "http://127.0.0.1")]), 403);
    }
}
