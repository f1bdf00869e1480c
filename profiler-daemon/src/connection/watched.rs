//! A stream that fails when it stands still.
//!
//! In:  bytes of a client; bytes for it
//! Out: the same; `TimedOut` if the first bytes do not come, or nothing that is written is taken
//! Lost: nothing
//!
//! A client that reads nothing, and pipelines requests, would keep its place for ever: what waits for its socket is not
//! bounded by the time limits for heads and answers. Progress is a single byte, so this is a limit for those that stand
//! still; the number of places is one for those that crawl.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long a stream may stand still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Bytes with which a client has begun, and how long it has for them.
    pub(crate) greeting: (usize, Duration),
    /// How long nothing may be taken of what is written.
    pub(crate) write: Duration,
}

/// A stream with its limits, and what belongs to the connection as long as it lasts.
#[derive(Debug)]
pub(crate) struct Watched<S, T> {
    stream: S,
    kept: T,
    /// Bytes that are missing for a greeting, and until when they must have come.
    greeting: Option<(usize, Pin<Box<Sleep>>)>,
    /// When a write is given up, while one waits.
    stalled: Option<Pin<Box<Sleep>>>,
    write: Duration,
}

impl<S, T> Watched<S, T> {
    pub(crate) fn new(stream: S, patience: Patience, kept: T) -> Self {
        let (bytes, time) = patience.greeting;
        Self {
            stream,
            kept,
            greeting: (bytes > 0).then(|| (bytes, Box::pin(sleep(time)))),
            stalled: None,
            write: patience.write,
        }
    }

    /// What belongs to the connection.
    pub(crate) fn kept(&self) -> &T {
        &self.kept
    }

    /// What came of a write or flush, unless it has waited for too long.
    fn watch<R>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let write = self.write;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(write)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(timed_out("nothing of what was written is taken")))
    }
}

fn timed_out(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, text)
}

impl<S: AsyncRead + Unpin, T: Unpin> AsyncRead for Watched<S, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some((missing, end)) = &mut self.greeting else {
            return outcome;
        };
        // Bytes that come one by one do not move the end.
        *missing = missing.saturating_sub(buffer.filled().len() - before);
        if *missing == 0 {
            self.greeting = None;
        } else if outcome.is_pending() || end.deadline() <= Instant::now() {
            ready!(end.as_mut().poll(context));
            return Poll::Ready(Err(timed_out("the client says nothing")));
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin, T: Unpin> AsyncWrite for Watched<S, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watch(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, outcome)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const PATIENCE: Patience = Patience {
        greeting: (3, Duration::from_secs(10)),
        write: Duration::from_secs(30),
    };

    /// Check that a greeting must be whole in time, however it comes, and that nothing is asked for after it.
    #[tokio::test(start_paused = true)]
    async fn a_greeting_comes_in_time_or_not_at_all() {
        let mut bytes = [0; 8];
        let (_silent, server) = duplex(64);
        let mut watched = Watched::new(server, PATIENCE, ());
        let start = Instant::now();
        let error = watched.read(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 10);

        let (mut slow, server) = duplex(64);
        let mut watched = Watched::new(server, PATIENCE, ());
        let writer = tokio::spawn(async move {
            for _ in 0..3 {
                sleep(Duration::from_secs(6)).await;
                let _ = slow.write_all(b"x").await;
            }
            slow
        });
        assert_eq!(watched.read(&mut bytes).await.unwrap(), 1);
        let error = watched.read(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(writer);

        let (mut client, server) = duplex(64);
        let mut watched = Watched::new(server, PATIENCE, ());
        client.write_all(b"abc").await.unwrap();
        assert_eq!(watched.read(&mut bytes).await.unwrap(), 3);
        let late = tokio::spawn(async move {
            sleep(Duration::from_hours(1)).await;
            client.write_all(b"d").await.unwrap();
        });
        assert_eq!(watched.read(&mut bytes).await.unwrap(), 1);
        late.await.unwrap();
    }

    /// Check that a write fails when nothing is taken for the whole time, and not while something is.
    #[tokio::test(start_paused = true)]
    async fn a_write_that_stands_still_fails() {
        let (mut client, server) = duplex(4);
        let mut watched = Watched::new(server, PATIENCE, ());
        let reader = tokio::spawn(async move {
            let mut byte = [0];
            for _ in 0..8 {
                sleep(Duration::from_secs(29)).await;
                client.read_exact(&mut byte).await.unwrap();
            }
            client
        });
        watched.write_all(b"0123456789ab").await.unwrap();
        let _client = reader.await.unwrap();
        let start = Instant::now();
        let error = watched.write_all(b"cdefg").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}
