//! Bounds messages that have not come to their end.
//!
//! In:  bodies of calls, in gRPC's framing: `| flag u8 | length u32 | bytes |`, repeated
//! Out: the same bytes; `RESOURCE_EXHAUSTED` or `DEADLINE_EXCEEDED` in their place
//! Lost: nothing
//!
//! The transport collects a message before anybody sees it, and each call of each connection has room for one. A
//! client that never sends the last byte would keep all of it, so bytes are counted here, in all and for a
//! connection, and a message has a time by which it must have come. A call counts with the largest message it had, since
//! the transport keeps that room until the call ends.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;

/// Most bytes that calls of one connection keep: two of the largest messages.
const CONNECTION_MAX_BYTES: usize = 16 << 20;
/// Most bytes that all connections keep; those of root and our own user may take as much more as one connection.
const TOTAL_MAX_BYTES: usize = 32 << 20;
/// How long a message may take from its first byte on, and the first message of a call from its head on.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a call may send nothing between two messages. Agents keep streams open.
const IDLE_TIMEOUT: Duration = Duration::from_mins(10);
/// Flag and length.
const HEADER_BYTES: usize = 5;

/// Bytes that calls keep, of all connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept(Arc<AtomicUsize>);

impl Kept {
    /// The share of a connection. Our own results come in even if all others have used up the total.
    pub(super) fn connection(&self, is_trusted: bool) -> KeptByConnection {
        let reserved = if is_trusted { CONNECTION_MAX_BYTES } else { 0 };
        KeptByConnection {
            own: Arc::default(),
            all: Arc::clone(&self.0),
            total_max: TOTAL_MAX_BYTES + reserved,
        }
    }
}

/// Bytes that the calls of one connection keep.
#[derive(Clone, Debug)]
pub(super) struct KeptByConnection {
    own: Arc<AtomicUsize>,
    all: Arc<AtomicUsize>,
    total_max: usize,
}

impl KeptByConnection {
    fn add(&self, bytes: usize) -> Result<(), Status> {
        let own = self.own.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if own <= CONNECTION_MAX_BYTES && all <= self.total_max {
            return Ok(());
        }
        self.remove(bytes);
        Err(Status::resource_exhausted(
            "too many bytes of messages that have not come to their end",
        ))
    }

    fn remove(&self, bytes: usize) {
        self.own.fetch_sub(bytes, Ordering::Relaxed);
        self.all.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Where the bytes of a body are within a message.
#[derive(Debug, Default)]
struct Framing {
    header: [u8; HEADER_BYTES],
    /// Bytes of the message that have come, with its header.
    come: usize,
    /// Messages that have come to their end.
    ended: u64,
    /// Most bytes of a message so far.
    largest: usize,
}

impl Framing {
    fn take(&mut self, mut bytes: &[u8]) {
        while let Some(&byte) = bytes.first() {
            let taken = match self.header.get_mut(self.come) {
                Some(slot) => {
                    *slot = byte;
                    1
                }
                None => self.missing().min(bytes.len()),
            };
            self.come += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            self.largest = self.largest.max(self.come);
            if self.come >= HEADER_BYTES && self.missing() == 0 {
                self.come = 0;
                self.ended += 1;
            }
        }
    }

    /// Bytes that are missing to the end of the message, once its header is there.
    fn missing(&self) -> usize {
        let [_, length @ ..] = self.header;
        let length = u32::from_be_bytes(length) as usize;
        (HEADER_BYTES + length).saturating_sub(self.come)
    }
}

/// The body of a call, with its limits.
struct Bounded {
    body: Body,
    framing: Framing,
    connection: KeptByConnection,
    /// What of it is counted in `connection`.
    counted: usize,
    /// When the message that is awaited must have come.
    end: Pin<Box<Sleep>>,
}

impl Bounded {
    fn new(body: Body, connection: KeptByConnection) -> Self {
        Self {
            body,
            framing: Framing::default(),
            connection,
            counted: 0,
            end: Box::pin(sleep(MESSAGE_TIMEOUT)),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Status> {
        let (was_inside, ended) = (self.framing.come > 0, self.framing.ended);
        self.framing.take(bytes);
        let more = self.framing.largest.saturating_sub(self.counted);
        self.connection.add(more)?;
        self.counted += more;
        let is_inside = self.framing.come > 0;
        if self.framing.ended > ended || !was_inside {
            let time = if is_inside {
                MESSAGE_TIMEOUT
            } else {
                IDLE_TIMEOUT
            };
            self.end.as_mut().reset(Instant::now() + time);
        }
        Ok(())
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        self.connection.remove(self.counted);
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            ready!(self.end.as_mut().poll(context));
            let text = "the message, or the next one, did not come in time";
            return Poll::Ready(Some(Err(Status::deadline_exceeded(text))));
        };
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
            && let Err(status) = self.take(bytes)
        {
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A service whose calls have these limits, on connections that bring [`KeptByConnection`] with them.
#[derive(Clone, Debug)]
pub(super) struct WithBounds<S>(pub(super) S);

impl<S: Service<Request<Body>>> Service<Request<Body>> for WithBounds<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let connection = request.extensions().get::<KeptByConnection>().cloned();
        self.0.call(request.map(|body| match connection {
            Some(connection) => Body::new(Bounded::new(body, connection)),
            None => body,
        }))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend((length as u32).to_be_bytes());
        bytes.resize(HEADER_BYTES + length, 7);
        bytes
    }

    type Sender = mpsc::Sender<Result<Frame<Bytes>, Status>>;

    fn call(connection: &KeptByConnection) -> (Sender, Bounded) {
        let (sender, receiver) = mpsc::channel(16);
        let body = Body::new(StreamBody::new(ReceiverStream::new(receiver)));
        (sender, Bounded::new(body, connection.clone()))
    }

    async fn send(sender: &Sender, bytes: &[u8]) {
        let frame = Frame::data(Bytes::copy_from_slice(bytes));
        sender.send(Ok(frame)).await.unwrap();
    }

    async fn code(body: &mut Bounded) -> Result<usize, tonic::Code> {
        let frame = body.frame().await.unwrap();
        let frame = frame.map_err(|status| status.code())?;
        Ok(frame.data_ref().unwrap().len())
    }

    /// Check that messages are told apart however their bytes come.
    #[test]
    fn messages_are_told_apart() {
        let bytes = [message(0), message(3), message(1), message(300)].concat();
        for part in [1, 2, 4, 5, 7, bytes.len()] {
            let mut framing = Framing::default();
            for bytes in bytes.chunks(part) {
                framing.take(bytes);
            }
            assert_eq!((framing.ended, framing.come), (4, 0), "{part}");
            assert_eq!(framing.largest, 305);
        }
        let mut framing = Framing::default();
        framing.take(&[0, 0xff, 0xff, 0xff, 0xff, 1, 2]);
        assert_eq!((framing.ended, framing.come), (0, 7));
    }

    /// Check that unfinished messages are refused beyond the limits of a connection and of all, and that their bytes are
    /// free again.
    #[tokio::test]
    async fn unfinished_messages_have_limits() {
        const LARGE: usize = 4 << 20;
        let kept = Kept::default();
        let unfinished = |connection: KeptByConnection| async move {
            let mut open = Vec::new();
            loop {
                let (sender, mut body) = call(&connection);
                send(&sender, &message(LARGE)[..LARGE]).await;
                let outcome = code(&mut body).await;
                open.push((sender, body));
                match outcome {
                    Ok(_) => {}
                    Err(code) => return (code, open),
                }
            }
        };
        let connection = || kept.connection(false);
        let (code, first) = unfinished(connection()).await;
        assert_eq!((code, first.len()), (tonic::Code::ResourceExhausted, 5));
        let (_, second) = unfinished(connection()).await;
        assert_eq!(second.len(), 5);
        let (_, none) = unfinished(connection()).await;
        assert_eq!(none.len(), 1);
        let (_, own) = unfinished(kept.connection(true)).await;
        assert_eq!(own.len(), 5);
        drop((first, second, none, own));
        assert_eq!(kept.0.load(Ordering::Relaxed), 0);
    }

    /// Check that a message comes in time, that a call may rest between two, and that bytes do not move the end.
    #[tokio::test(start_paused = true)]
    async fn a_message_comes_in_time() {
        let connection = Kept::default().connection(false);
        let start = Instant::now();
        let (_sender, mut body) = call(&connection);
        assert_eq!(code(&mut body).await, Err(tonic::Code::DeadlineExceeded));
        assert_eq!(start.elapsed(), MESSAGE_TIMEOUT);

        let (sender, mut body) = call(&connection);
        send(&sender, &message(10)).await;
        code(&mut body).await.unwrap();
        let rest = IDLE_TIMEOUT.checked_sub(Duration::from_secs(1)).unwrap();
        tokio::time::advance(rest).await;
        let start = Instant::now();
        let slow = tokio::spawn(async move {
            for byte in message(10) {
                send(&sender, &[byte]).await;
                sleep(Duration::from_secs(4)).await;
            }
            sender
        });
        let failure = loop {
            match code(&mut body).await {
                Ok(length) => assert_eq!(length, 1),
                Err(code) => break code,
            }
        };
        assert_eq!(failure, tonic::Code::DeadlineExceeded);
        assert_eq!(start.elapsed(), MESSAGE_TIMEOUT);
        drop(slow);
    }
}
