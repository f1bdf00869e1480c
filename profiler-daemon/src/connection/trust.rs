//! Whether a port of this host may be sent a secret.
//!
//! In:  the two ends of a connection that was just made, without TLS
//! Out: [`Untrusted`], if any user but those we trust may be at the other end
//! Lost: nothing
//!
//! # Why
//!
//! Any user may listen on a port above 1023 while the program that belongs there does not run, and would be sent
//! the token, URLs and stacks of all users' services. Another host is trusted by its address, as ever; TLS is by its
//! certificate.
//!
//! # How
//!
//! The user at the other end is that of the socket which took our connection. Before it is taken, it has none; then
//! it is the user of the socket that listens, which is still there, since the connection would be reset otherwise. Both
//! are looked at after the connection is made, so nobody can change places in between. If neither is there, the
//! connection was redirected by a rule of the packet filter, which only root can set.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use thiserror::Error;

use super::peer::is_this_host;
use crate::process::listen;
use crate::process::sock_diag::{ListeningSocket, SockDiag};

/// Users whose programs on this host may be sent secrets: root, our own user, and those that are configured.
#[derive(Clone, Debug)]
pub(crate) struct Trusted(Arc<[u32]>);

/// Another user may be at the other end. Nothing was sent.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "the program that listens at {address} runs as user {user}, who is neither root nor the user of this profilerd; \
     nothing was sent to it. If it is the right one, add the user to oap.local_users (PROFILERD_OAP_LOCAL_USERS)"
)]
pub(crate) struct Untrusted {
    address: SocketAddr,
    user: String,
}

impl Trusted {
    /// These users beside root and our own.
    pub(crate) fn new(users: &[u32]) -> Self {
        let always = [0, nix::unistd::geteuid().as_raw()];
        Self(always.iter().chain(users).copied().collect())
    }

    /// Checks the other end of a connection, if it is on this host. Reads tables of the kernel.
    ///
    /// # Errors
    ///
    /// [`Untrusted`], as the inner error; or the kernel does not tell.
    pub(crate) fn check(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
        if !is_this_host(local, remote) {
            return Ok(());
        }
        for user in users_at(local, remote)? {
            if !self.0.contains(&user) {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    Untrusted {
                        address: remote,
                        user: named(user),
                    },
                ));
            }
        }
        Ok(())
    }
}

/// The refusal in an error, below any context.
pub(crate) fn untrusted<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Untrusted> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        let found = inner.and_then(|inner| inner.downcast_ref::<Untrusted>());
        if found.is_some() {
            return found;
        }
        next = error.source();
    }
    None
}

fn users_at(local: SocketAddr, remote: SocketAddr) -> io::Result<Vec<u32>> {
    let told = SockDiag::open().and_then(|diag| {
        let taken_by = diag.owner_of(remote, local)?;
        let listening = diag.listening_on(remote.port())?;
        let listening = nearest(&listening, remote.ip().to_canonical());
        Ok(listening.chain(taken_by).collect())
    });
    // A kernel without it has this table, with less in it.
    told.or_else(|error| match listen::owners_of(remote.port()) {
        users if users.is_empty() => Err(error),
        users => Ok(users),
    })
}

/// Users of the sockets to which the kernel gives a connection to this address: those that have the address, else
/// those for all addresses of its family, else those for both families. Another user may listen beside them.
fn nearest(sockets: &[ListeningSocket], to: IpAddr) -> impl Iterator<Item = u32> {
    let rank = move |socket: &ListeningSocket| {
        let address = socket.address.to_canonical();
        match () {
            () if address == to => Some(0),
            () if !address.is_unspecified() => None,
            () if address.is_ipv4() == to.is_ipv4() => Some(1),
            () if to.is_ipv4() && !socket.is_v6_only => Some(2),
            () => None,
        }
    };
    let best = sockets.iter().filter_map(rank).min();
    let nearest = sockets
        .iter()
        .filter(move |socket| rank(socket) == best && best.is_some());
    nearest.map(|socket| socket.owner)
}

fn named(user: u32) -> String {
    let entry = nix::unistd::User::from_uid(user.into());
    match entry.ok().flatten() {
        Some(entry) => format!("{user} ({})", entry.name),
        None => user.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn socket(address: &str, is_v6_only: bool, owner: u32) -> ListeningSocket {
        ListeningSocket {
            address: address.parse().unwrap(),
            is_v6_only,
            owner,
        }
    }

    /// Check that the users are those of the sockets that get the connection, not of others on the same port.
    #[test]
    fn the_nearest_socket_counts() {
        let users = |sockets: &[ListeningSocket], to: &str| -> Vec<u32> {
            nearest(sockets, to.parse().unwrap()).collect()
        };
        let own = socket("127.0.0.1", false, 1);
        let other = socket("127.0.0.2", false, 2);
        let all = socket("0.0.0.0", false, 3);
        let both = socket("::", false, 4);
        let v6 = socket("::", true, 5);
        let mapped = socket("::ffff:127.0.0.1", false, 6);
        assert_eq!(users(&[other, all, own, both], "127.0.0.1"), [1]);
        assert_eq!(users(&[own, own, mapped], "127.0.0.1"), [1, 1, 6]);
        assert_eq!(users(&[other, all, both, v6], "127.0.0.1"), [3]);
        assert_eq!(users(&[other, both, v6], "127.0.0.1"), [4]);
        assert_eq!(users(&[other, v6], "127.0.0.1"), [0; 0]);
        assert_eq!(users(&[own, all, both, v6], "::1"), [4, 5]);
        assert_eq!(users(&[own, all], "::1"), [0; 0]);
    }

    /// Check that a port of our own is trusted by each address, before and after the connection is taken; and that
    /// others are not asked about.
    #[test]
    fn our_own_port_is_trusted() {
        let trusted = Trusted::new(&[]);
        for (listen, to) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("0.0.0.0:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("[::]:0", "127.0.0.1"),
        ] {
            let listener = TcpListener::bind(listen).unwrap();
            let to: IpAddr = to.parse().unwrap();
            let port = listener.local_addr().unwrap().port();
            let stream = TcpStream::connect((to, port)).unwrap();
            let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let own = nix::unistd::geteuid().as_raw();
            assert_eq!(users_at(local, remote).unwrap(), [own], "{listen}");
            trusted.check(local, remote).unwrap();
            let accepted = listener.accept().unwrap();
            assert_eq!(users_at(local, remote).unwrap(), [own, own]);
            drop(listener);
            assert_eq!(users_at(local, remote).unwrap(), [own]);
            drop(accepted);
            let strangers = Trusted(Arc::new([own + 1]));
            let error = strangers.check(local, remote);
            assert!(error.is_ok(), "nobody is there any more");
        }
        let (here, there) = ("192.0.2.1:1".parse(), "192.0.2.2:2".parse());
        trusted.check(here.unwrap(), there.unwrap()).unwrap();
    }

    /// Check that the port of a user who is not trusted is refused, with the user and what to do.
    #[test]
    fn another_user_is_named() {
        let own = nix::unistd::geteuid().as_raw();
        let strangers = Trusted(Arc::new([own + 1]));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let error = strangers.check(local, remote).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let error = anyhow::Error::from(error).context("failed to connect");
        let text = untrusted(error.as_ref()).unwrap().to_string();
        for part in [
            &remote.to_string(),
            &format!("user {own}"),
            "oap.local_users",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let other = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(untrusted(&other), None);
    }
}
