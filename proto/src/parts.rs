//! Counts the parts of a message before it is decoded.
//!
//! In:  the bytes of a message that a client sends
//! Out: the message; `OUT_OF_RANGE` if it has more parts than any real one
//! Lost: nothing
//!
//! An empty span is two bytes of a message and more than two hundred of memory: a message of 8 MiB would become 1 GiB.
//! A part is each text, each list of numbers and each message inside a message. Answers of the built-in OAP are
//! not counted: its clients trust it, and a result may be large.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf as _;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Most parts of a message that a client sends: 16 MiB of memory beside its texts. A snapshot of 1,024 frames has
/// 1,027, a collection of a hundred segments with ten spans of eight tags some 30,000.
pub const PARTS_MAX: u32 = 65_536;

/// Counts the parts of a nested message.
pub type Count = fn(&[u8], &mut u32) -> Result<(), TooMany>;

/// A message whose parts can be counted. Generated for every message.
pub trait Parts {
    /// Whether clients send it to the built-in OAP.
    const IS_REQUEST: bool;
    /// Numbers of the fields that are messages.
    const NESTED: &'static [(u32, Count)];
}

/// A message has more parts than are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

/// Takes from `left` as many as there are parts in a message. Bytes that are no message count up to the place where
/// decoding fails.
///
/// # Errors
///
/// There are more.
pub fn count<M: Parts>(mut bytes: &[u8], left: &mut u32) -> Result<(), TooMany> {
    while let Some(key) = varint(&mut bytes) {
        // `Message::decode` takes the low 32 bits of a key, and refuses others.
        let skipped = match key & 7 {
            0 => varint(&mut bytes).map(|_| ()),
            1 => bytes.split_off(..8).map(|_| ()),
            2 => {
                let length = varint(&mut bytes).and_then(|length| usize::try_from(length).ok());
                let Some(part) = length.and_then(|length| bytes.split_off(..length)) else {
                    return Ok(());
                };
                *left = left.checked_sub(1).ok_or(TooMany)?;
                let nested = M::NESTED.iter();
                let mut nested = nested.filter(|(field, _)| u64::from(*field) == key >> 3);
                nested.try_for_each(|(_, count)| count(part, left))?;
                Some(())
            }
            5 => bytes.split_off(..4).map(|_| ()),
            // A group; its fields follow, and are counted as those of the message.
            3 | 4 => Some(()),
            _ => None,
        };
        if skipped.is_none() {
            return Ok(());
        }
    }
    Ok(())
}

/// Takes a number of at most ten bytes; `None` if there is none.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let &byte = bytes.split_off_first()?;
        // The tenth byte has one bit of a number.
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// As [`ProstCodec`], for messages that are counted first.
#[derive(Debug)]
pub struct PartsCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for PartsCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for PartsCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Parts + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = PartsDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::new().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        PartsDecoder(ProstCodec::<T, U>::new().decoder())
    }
}

/// Decodes what has been counted.
#[derive(Debug)]
pub struct PartsDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + Parts> Decoder for PartsDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if U::IS_REQUEST {
            // The transport collects a message in one piece.
            let message = bytes.chunk();
            if message.len() < bytes.remaining() {
                return Err(Status::internal("a message came in pieces"));
            }
            if count::<U>(message, &mut { PARTS_MAX }).is_err() {
                return Err(Status::out_of_range(format!(
                    "the message has more than {PARTS_MAX} parts"
                )));
            }
        }
        self.0.decode(bytes)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skywalking::{
        KeyStringValuePair, Log, SegmentCollection, SegmentObject, SpanObject, ThreadSnapshot,
        ThreadStack,
    };

    fn parts<M: Parts>(bytes: &[u8]) -> u32 {
        let mut left = PARTS_MAX;
        count::<M>(bytes, &mut left).expect("few parts");
        PARTS_MAX - left
    }

    /// Check that texts and messages count on every level, and numbers do not.
    #[test]
    fn texts_and_messages_are_parts() {
        let pair = || KeyStringValuePair {
            key: "k".to_owned(),
            value: "v".to_owned(),
        };
        let span = SpanObject {
            span_id: 7,
            start_time: 1 << 60,
            operation_name: "/".to_owned(),
            tags: vec![pair(), pair()],
            logs: vec![Log {
                time: -1,
                data: vec![pair()],
            }],
            ..SpanObject::default()
        };
        // The name, two tags of three parts each, a log with a pair.
        assert_eq!(parts::<SpanObject>(&span.encode_to_vec()), 1 + 6 + 1 + 3);
        let segment = SegmentObject {
            trace_id: "t".to_owned(),
            spans: vec![span.clone(), span],
            ..SegmentObject::default()
        };
        assert_eq!(parts::<SegmentObject>(&segment.encode_to_vec()), 1 + 2 * 12);
        let all = SegmentCollection {
            segments: vec![segment; 3],
        };
        assert_eq!(parts::<SegmentCollection>(&all.encode_to_vec()), 3 * 26);
        let snapshot = ThreadSnapshot {
            task_id: "t".to_owned(),
            stack: Some(ThreadStack {
                code_signatures: vec![String::new(); 1024],
            }),
            ..ThreadSnapshot::default()
        };
        assert_eq!(parts::<ThreadSnapshot>(&snapshot.encode_to_vec()), 2 + 1024);
    }

    /// Check that small parts that multiply are too many, on each level.
    #[test]
    fn empty_parts_are_too_many() {
        let repeated = |field: u8, count: u32| [field << 3 | 2, 0].repeat(count as usize);
        let left = &mut { PARTS_MAX };
        assert_eq!(
            count::<SegmentObject>(&repeated(3, PARTS_MAX), left),
            Ok(())
        );
        let many = repeated(3, PARTS_MAX + 1);
        let left = &mut { PARTS_MAX };
        assert_eq!(count::<SegmentObject>(&many, left), Err(TooMany));
        // A hundred segments, each with fewer spans than are allowed in all.
        let spans = repeated(3, 1_000);
        let mut segment = vec![1 << 3 | 2];
        prost::encoding::encode_varint(spans.len() as u64, &mut segment);
        segment.extend(spans);
        let segments = segment.repeat(100);
        let left = &mut { PARTS_MAX };
        assert_eq!(count::<SegmentCollection>(&segments, left), Err(TooMany));
    }

    /// Check that bytes that are no message end the count.
    #[test]
    fn no_message_ends_the_count() {
        for (bytes, expected) in [
            (&[0x1a][..], 0),
            (&[0x1a, 5, 1], 0),
            (&[0x1a, 0, 7], 1),
            (&[0xff; 20], 0),
            (&[0x0b, 0x1a, 0, 0x0c], 1),
            (&[0x09, 1, 2, 3], 0),
        ] {
            assert_eq!(parts::<SegmentObject>(bytes), expected, "{bytes:?}");
        }
    }
}
