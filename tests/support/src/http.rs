//! A small HTTP/1.1 client on one keep-alive connection, enough for the servers of the tests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Longest head and body that are read; the largest are call trees of an OAP.
const RESPONSE_MAX_BYTES: u64 = 16 << 20;

/// One connection.
#[derive(Debug)]
pub struct HttpClient {
    stream: BufReader<TcpStream>,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body, decoded as far as `Content-Length` goes.
    pub body: Vec<u8>,
    /// From before the request was written until the last byte was read.
    pub elapsed: Duration,
}

impl HttpClient {
    /// Connects; every later read waits `timeout` at most.
    ///
    /// # Errors
    /// Nobody listens, or the socket cannot be set up.
    pub fn connect(server: SocketAddr, timeout: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&server, timeout)
            .with_context(|| format!("failed to connect to {server}"))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends one request in one write and reads its answer. An empty `body` sends no body headers.
    ///
    /// # Errors
    /// The connection broke, timed out or the answer is not HTTP/1.x with a `Content-Length`.
    pub fn request(&mut self, method: &str, target: &str, body: &str) -> Result<Response> {
        self.request_with(method, target, &[], body)
    }

    /// As [`Self::request`], with headers of the caller.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn request_with(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Response> {
        let start = Instant::now();
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        request.push_str(body);
        self.send_raw(request.as_bytes())?;
        let (status, body) = self
            .read_response()
            .with_context(|| format!("failed to read the answer to {method} {target}"))?;
        let elapsed = start.elapsed();
        Ok(Response {
            status,
            body,
            elapsed,
        })
    }

    /// Writes bytes as they are: for pipelined, split and broken requests.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .get_mut()
            .write_all(bytes)
            .context("failed to write a request")
    }

    /// Closes the client's side: no more will be sent, and answers are still read.
    ///
    /// # Errors
    /// The connection broke.
    pub fn finish_sending(&mut self) -> Result<()> {
        let stream = self.stream.get_ref();
        stream
            .shutdown(Shutdown::Write)
            .context("failed to close the client's side")
    }

    /// Reads up to and with these bytes: of answers that are framed in another way.
    ///
    /// # Errors
    /// The connection broke or timed out, or was closed before.
    pub fn read_until(&mut self, end: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut stream = (&mut self.stream).take(RESPONSE_MAX_BYTES);
        while !bytes.ends_with(end) {
            let mut byte = [0];
            let read = stream.read(&mut byte).context("failed to read an answer")?;
            ensure!(read > 0, "the connection was closed inside an answer");
            bytes.push(byte[0]);
        }
        Ok(bytes)
    }

    /// Reads one answer: status and body.
    ///
    /// # Errors
    /// The connection broke, timed out or the answer is not HTTP/1.x with a `Content-Length`.
    pub fn read_response(&mut self) -> Result<(u16, Vec<u8>)> {
        let mut stream = (&mut self.stream).take(RESPONSE_MAX_BYTES);
        let status_line = read_line(&mut stream)?;
        let status = parse_status(&status_line)
            .with_context(|| format!("not a status line: {status_line:?}"))?;
        let mut length = None;
        loop {
            let line = read_line(&mut stream)?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse::<u64>().context("bad Content-Length")?);
            }
        }
        let length = length.context("no Content-Length in the answer")?;
        ensure!(length <= RESPONSE_MAX_BYTES, "answer of {length} bytes");
        let mut body = Vec::new();
        let read = self.stream.by_ref().take(length).read_to_end(&mut body)?;
        ensure!(read as u64 == length, "the answer ends early");
        Ok((status, body))
    }
}

fn read_line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 || !line.ends_with('\n') {
        bail!("the connection was closed inside an answer");
    }
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

fn parse_status(line: &str) -> Option<u16> {
    let (version, rest) = line.split_once(' ')?;
    if !version.starts_with("HTTP/1.") {
        return None;
    }
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answered_with(bytes: &'static [u8]) -> HttpClient {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = HttpClient::connect(listener.local_addr().unwrap(), Duration::from_secs(10));
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(bytes).unwrap();
        client.unwrap()
    }

    /// Check that two answers on one connection are told apart by their length.
    #[test]
    fn two_answers_on_one_connection_are_read_one_after_the_other() {
        let mut client = answered_with(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        );
        assert_eq!(client.read_response().unwrap(), (200, b"ok".to_vec()));
        assert_eq!(client.read_response().unwrap(), (404, Vec::new()));
    }

    /// Check that a connection that closes inside the body is an error, not a short body.
    #[test]
    fn a_cut_answer_is_an_error() {
        let mut client = answered_with(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok");
        let error = client.read_response().unwrap_err();
        assert_eq!(error.to_string(), "the answer ends early");
    }

    /// Check that other protocols are refused by their first line.
    #[test]
    fn a_line_that_is_not_http_is_an_error() {
        let mut client = answered_with(b"220 mail ready\r\n");
        let error = client.read_response().unwrap_err();
        assert_eq!(error.to_string(), "not a status line: \"220 mail ready\"");
    }
}
