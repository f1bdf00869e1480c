//! Who is at the other end of a connection.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::process::sock_diag::SockDiag;

/// Whose connections are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// A user of this host.
    User(u32),
    /// Another host, or this one if the kernel does not tell the user. Of IPv6 the network: one host has
    /// 2^64 addresses of it.
    Host(IpAddr),
}

impl Peer {
    /// The peer of an accepted connection.
    pub(crate) fn of(diag: Option<&SockDiag>, local: SocketAddr, remote: SocketAddr) -> Self {
        let user = is_this_host(local, remote)
            // Their socket, seen from its side.
            .then(|| diag?.owner_of(remote, local).ok().flatten())
            .flatten();
        user.map_or_else(|| Self::Host(network(remote.ip())), Self::User)
    }

    /// Whether it is root or our own user, who can do more to us than take places.
    pub(crate) fn is_trusted(self) -> bool {
        match self {
            Self::User(user) => user == 0 || user == nix::unistd::geteuid().as_raw(),
            Self::Host(_) => false,
        }
    }
}

/// Whether both ends are on this host: a connection to an address of one's own comes from the same address.
pub(crate) fn is_this_host(local: SocketAddr, remote: SocketAddr) -> bool {
    let (local, remote) = (local.ip().to_canonical(), remote.ip().to_canonical());
    remote.is_loopback() || local == remote
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Check which addresses are one peer.
    #[test]
    fn addresses_of_a_network_are_one_peer() {
        let peer = |remote: &str| {
            let local = "192.0.2.1:80".parse().unwrap();
            Peer::of(None, local, remote.parse().unwrap())
        };
        assert_eq!(peer("[2001:db8::1]:1"), peer("[2001:db8::2:3]:4"));
        assert_ne!(peer("[2001:db8::1]:1"), peer("[2001:db8:0:1::1]:1"));
        assert_eq!(peer("192.0.2.7:1"), peer("[::ffff:192.0.2.7]:9"));
        assert_ne!(peer("192.0.2.7:1"), peer("192.0.2.8:1"));
        assert!(!peer("192.0.2.7:1").is_trusted());
    }

    /// Check that a client of this host is known by its user, by each address of this host.
    #[test]
    fn a_client_of_this_host_is_its_user() {
        let diag = SockDiag::open().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let is_v6_only = address == "[::1]:0";
            let to = if is_v6_only { "[::1]" } else { "127.0.0.1" };
            let client = TcpStream::connect(format!("{to}:{port}")).unwrap();
            let (accepted, remote) = listener.accept().unwrap();
            let peer = Peer::of(Some(&diag), accepted.local_addr().unwrap(), remote);
            let own = nix::unistd::geteuid().as_raw();
            assert_eq!(peer, Peer::User(own), "{address}");
            assert!(peer.is_trusted());
            drop(client);
        }
    }
}
