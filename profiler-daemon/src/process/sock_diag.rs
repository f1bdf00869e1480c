//! Asks the kernel for the listening TCP sockets of the daemon's own network namespace.
//!
//! In:  `NETLINK_SOCK_DIAG`, see sock_diag(7)
//! Out: [`Listeners`]
//! Lost: nothing; an error sends the caller to `/proc/PID/net`
//!
//! Asked for this state alone the kernel walks listening sockets and nothing else
//! (<https://github.com/torvalds/linux/blob/v6.12/net/ipv4/inet_diag.c#L1110>), while for
//! `/proc/PID/net/tcp` it looks through the table of all connections, milliseconds even if that is
//! empty. A netlink socket belongs to the namespace of its maker, so this serves one namespace.

use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use super::listen::Listeners;

/// Room for one part of the answer; the kernel makes them 32 KiB at most.
const PART_BYTES: usize = 32 << 10;
/// Most listening sockets that are read.
const LISTENERS_MAX: usize = 65_536;

/// Listening sockets of this process's network namespace.
///
/// # Errors
///
/// The kernel has no `sock_diag` or refuses.
pub(super) fn listeners() -> io::Result<Listeners> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut found = Listeners::new();
    for (family, any) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        socket.send(&request(family, any), 0)?;
        receive(&socket, &mut found)?;
    }
    Ok(found)
}

fn request(family: u8, any: SocketId) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let body = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id: any,
    });
    let mut message = NetlinkMessage::new(header, body.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Reads one answer to its end.
fn receive(socket: &Socket, found: &mut Listeners) -> io::Result<()> {
    let mut part = vec![0; PART_BYTES];
    loop {
        let len = socket.recv(&mut &mut part[..], 0)?;
        let mut rest = part.get(..len).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    let header = response.header;
                    if found.len() < LISTENERS_MAX {
                        found.insert(header.inode.into(), header.socket_id.source_port);
                    }
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            // Messages begin at multiples of four bytes.
            let used = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(used..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Check that both families are there, and no connection.
    #[test]
    fn listening_sockets_are_found() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let v6 = TcpListener::bind("[::1]:0").unwrap();
        let _client = std::net::TcpStream::connect(v4.local_addr().unwrap()).unwrap();
        let found = listeners().unwrap();
        for listener in [v4, v6] {
            let port = listener.local_addr().unwrap().port();
            assert_eq!(found.values().filter(|&&found| found == port).count(), 1);
        }
    }
}
