//! Asks the kernel about TCP sockets of the daemon's own network namespace: who listens, and whose one socket is.
//!
//! In:  `NETLINK_SOCK_DIAG`, see sock_diag(7)
//! Out: [`Listeners`] by inode; [`ListeningSocket`]s of a port; the user of a connected socket
//! Lost: nothing; an error sends the caller to `/proc/PID/net`
//!
//! Asked for this state alone the kernel walks listening sockets and nothing else
//! (<https://github.com/torvalds/linux/blob/v6.12/net/ipv4/inet_diag.c#L1110>), while for
//! `/proc/PID/net/tcp` it looks through the table of all connections, milliseconds even if that is
//! empty. One connected socket is found by its addresses in the same table, in microseconds. A netlink socket belongs
//! to the namespace of its maker, so this serves one namespace.

use std::io;
use std::net::{self, IpAddr};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use super::listen::Listeners;

/// Room for one part of the answer; the kernel makes them 32 KiB at most.
const PART_BYTES: usize = 32 << 10;
/// Most listening sockets that are read.
const LISTENERS_MAX: usize = 65_536;
/// A socket of which only the addresses are known.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// A socket that accepts connections to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListeningSocket {
    /// Where it listens; unspecified for every address.
    pub(crate) address: IpAddr,
    /// It takes no connections of IPv4.
    pub(crate) is_v6_only: bool,
    /// User id of its maker.
    pub(crate) owner: u32,
}

/// A way to ask. It keeps one descriptor, so that it works when no other can be opened.
pub(crate) struct SockDiag(Socket);

impl SockDiag {
    /// # Errors
    ///
    /// The kernel has no `sock_diag` or refuses.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sockets that listen on a port.
    ///
    /// # Errors
    ///
    /// The kernel has no `sock_diag` or refuses.
    pub(crate) fn listening_on(&self, port: u16) -> io::Result<Vec<ListeningSocket>> {
        let mut found = Vec::new();
        self.listening(|socket| {
            if socket.header.socket_id.source_port == port && found.len() < LISTENERS_MAX {
                found.push(ListeningSocket {
                    address: socket.header.socket_id.source_address,
                    is_v6_only: socket.nlas.contains(&Nla::SkV6Only(true)),
                    owner: socket.header.uid,
                });
            }
        })?;
        Ok(found)
    }

    /// User id of the process that holds the socket with these addresses; `None` if there is none, or nobody has
    /// taken it yet: a connection that waits to be accepted belongs to no user.
    ///
    /// # Errors
    ///
    /// The kernel refuses to answer.
    pub(crate) fn owner_of(
        &self,
        local: net::SocketAddr,
        remote: net::SocketAddr,
    ) -> io::Result<Option<u32>> {
        // A socket for both families shows addresses of IPv4 as some of IPv6.
        let (source, destination) = (local.ip().to_canonical(), remote.ip().to_canonical());
        let socket_id = SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: source,
            destination_address: destination,
            interface_id: 0,
            cookie: ANY_COOKIE,
        };
        let request = request(family(source), socket_id, StateFlags::all(), 0);
        self.0.send(&request, 0)?;
        let mut found = None;
        let answered = self.receive(true, |socket| {
            let header = &socket.header;
            let ports = &header.socket_id;
            let is_asked =
                (ports.source_port, ports.destination_port) == (local.port(), remote.port());
            // The kernel answers with a listening socket if no connection has these addresses. Without an inode
            // the user id is a meaningless 0.
            if is_asked && header.state != TCP_LISTEN && header.inode != 0 {
                found = Some(header.uid);
            }
        });
        match answered {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(|()| found),
        }
    }

    fn listening(&self, mut visit: impl FnMut(&InetResponse)) -> io::Result<()> {
        for (family, any) in [
            (AF_INET, SocketId::new_v4()),
            (AF_INET6, SocketId::new_v6()),
        ] {
            let request = request(family, any, StateFlags::LISTEN, NLM_F_DUMP);
            self.0.send(&request, 0)?;
            self.receive(false, &mut visit)?;
        }
        Ok(())
    }

    /// Reads one answer to its end; that of a single socket is one message.
    fn receive(&self, is_single: bool, mut visit: impl FnMut(&InetResponse)) -> io::Result<()> {
        let mut part = vec![0; PART_BYTES];
        loop {
            let len = self.0.recv(&mut &mut part[..], 0)?;
            let bytes = part.get(..len).unwrap_or_default();
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if read_part(bytes, is_single, &mut visit)? {
                return Ok(());
            }
        }
    }
}

/// Reads a part of an answer; whether it is the last.
fn read_part(
    mut rest: &[u8],
    is_single: bool,
    visit: &mut impl FnMut(&InetResponse),
) -> io::Result<bool> {
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                visit(&response);
                if is_single {
                    return Ok(true);
                }
            }
            // A kernel without this part of `sock_diag` says so at the end of an empty answer.
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
        // Messages begin at multiples of four bytes.
        let used = (message.header.length as usize).next_multiple_of(4).max(4);
        rest = rest.get(used..).unwrap_or_default();
    }
    Ok(false)
}

/// Listening sockets of this process's network namespace.
///
/// # Errors
///
/// The kernel has no `sock_diag` or refuses.
pub(super) fn listeners() -> io::Result<Listeners> {
    let mut found = Listeners::new();
    SockDiag::open()?.listening(|socket| {
        if found.len() < LISTENERS_MAX {
            let port = socket.header.socket_id.source_port;
            found.insert(socket.header.inode.into(), port);
        }
    })?;
    Ok(found)
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

fn request(family: u8, socket_id: SocketId, states: StateFlags, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let body = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    });
    let mut message = NetlinkMessage::new(header, body.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn own_user() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    /// Check that both families are there, and no connection.
    #[test]
    fn listening_sockets_are_found() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::1]:0").unwrap();
        let _client = TcpStream::connect(v4.local_addr().unwrap()).unwrap();
        let found = listeners().unwrap();
        for listener in [v4, v6] {
            let address = listener.local_addr().unwrap();
            let count = found.values().filter(|&&found| found == address.port());
            assert_eq!(count.count(), 1);
            let sockets = SockDiag::open()
                .unwrap()
                .listening_on(address.port())
                .unwrap();
            let expected = ListeningSocket {
                address: address.ip(),
                is_v6_only: address.is_ipv6() && sockets[0].is_v6_only,
                owner: own_user(),
            };
            assert_eq!(sockets, [expected]);
        }
    }

    /// Check that both ends of a connection have their user, and the accepted one not before it is accepted.
    #[test]
    fn a_connection_has_its_user_on_both_ends() {
        let diag = SockDiag::open().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let server = listener.local_addr().unwrap();
            let stream = TcpStream::connect(server).unwrap();
            let client = stream.local_addr().unwrap();
            assert_eq!(diag.owner_of(client, server).unwrap(), Some(own_user()));
            assert_eq!(diag.owner_of(server, client).unwrap(), None, "{address}");
            let (accepted, _) = listener.accept().unwrap();
            assert_eq!(diag.owner_of(server, client).unwrap(), Some(own_user()));
            drop(accepted);
            // Nobody connects from there.
            let mut nowhere = client;
            nowhere.set_port(server.port());
            assert_eq!(diag.owner_of(nowhere, server).unwrap(), None);
        }
    }

    /// Check that an answer without sockets is told from a kernel that cannot answer.
    #[test]
    fn a_kernel_that_cannot_answer_is_no_empty_answer() {
        let done = |code: i32| {
            const DONE: u16 = 3;
            let mut bytes = 20_u32.to_ne_bytes().to_vec();
            bytes.extend(DONE.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        let read = |bytes: &[u8]| read_part(bytes, false, &mut |_| panic!("a socket"));
        assert!(read(&done(0)).unwrap());
        let error = read(&done(-libc::ENOENT)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(read(&done(i32::MIN)).is_err());
        assert!(read(&[1, 2, 3]).is_err());
    }
}
