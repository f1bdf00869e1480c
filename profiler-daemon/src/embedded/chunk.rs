//! Reads a stream in chunks, each to be stored in one transaction.
//!
//! In:  messages of an agent's stream, as they come
//! Out: [`Chunk`]s, bounded in number, size and age of their messages
//! Lost: nothing; what came before an error is handed out with it

use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, timeout_at};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

/// A transaction costs about as much as a hundred rows in it.
const ROWS_MAX: usize = 1024;
/// One message more may come on top.
const BYTES_MAX: usize = 1 << 20;
/// How long a row waits for more: agents keep streams open, and results are read meanwhile.
const LINGER: Duration = Duration::from_millis(50);

/// Messages that came together.
#[derive(Debug)]
pub(super) struct Chunk<T> {
    pub(super) rows: Vec<T>,
    /// How the stream ended, if it has.
    pub(super) end: Option<Result<(), Status>>,
}

impl<T: Message> Chunk<T> {
    /// Waits for a message, and takes what comes soon after it.
    pub(super) async fn next(stream: &mut (impl Stream<Item = Result<T, Status>> + Unpin)) -> Self {
        let mut rows = Vec::new();
        let mut bytes = 0;
        let mut deadline = None;
        while rows.len() < ROWS_MAX && bytes < BYTES_MAX {
            let message = match deadline {
                None => stream.next().await,
                Some(deadline) => match timeout_at(deadline, stream.next()).await {
                    Ok(message) => message,
                    Err(_) => break,
                },
            };
            match message {
                Some(Ok(message)) => {
                    bytes += message.encoded_len();
                    rows.push(message);
                }
                Some(Err(status)) => {
                    let end = Some(Err(status));
                    return Self { rows, end };
                }
                None => {
                    let end = Some(Ok(()));
                    return Self { rows, end };
                }
            }
            deadline.get_or_insert_with(|| Instant::now() + LINGER);
        }
        Self { rows, end: None }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    type Row = Result<String, Status>;

    fn rows(count: usize) -> impl Stream<Item = Row> + Unpin {
        tokio_stream::iter((0..count).map(|_| Ok("row".to_owned())))
    }

    /// Check that a chunk ends at its limit of rows, and the last one says that the stream has ended.
    #[tokio::test]
    async fn a_chunk_has_so_many_rows() {
        let mut stream = rows(ROWS_MAX + 1);
        let first = Chunk::next(&mut stream).await;
        assert_eq!((first.rows.len(), first.end.is_none()), (ROWS_MAX, true));
        let last = Chunk::next(&mut stream).await;
        assert_eq!(
            (last.rows.len(), matches!(last.end, Some(Ok(())))),
            (1, true)
        );
    }

    /// Check that large messages end a chunk early.
    #[tokio::test]
    async fn a_chunk_has_so_many_bytes() {
        let large = || -> Row { Ok("x".repeat(BYTES_MAX)) };
        let mut stream = tokio_stream::iter([large(), large()]);
        assert_eq!(Chunk::next(&mut stream).await.rows.len(), 1);
    }

    /// Check that rows are handed out while their stream stays open, and before its error.
    #[tokio::test]
    async fn rows_do_not_wait_for_the_end() {
        let (sender, receiver) = mpsc::channel::<Row>(2);
        let mut stream = ReceiverStream::new(receiver);
        sender.send(Ok("a".to_owned())).await.unwrap();
        let chunk = Chunk::next(&mut stream).await;
        assert_eq!((chunk.rows.len(), chunk.end.is_none()), (1, true));
        sender.send(Ok("b".to_owned())).await.unwrap();
        sender.send(Err(Status::aborted("gone"))).await.unwrap();
        let chunk = Chunk::next(&mut stream).await;
        assert_eq!(chunk.rows, ["b"]);
        assert_eq!(chunk.end.unwrap().unwrap_err().message(), "gone");
    }
}
