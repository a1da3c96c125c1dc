//! The protocol buffers of TensorBoard's events, as far as they are used here.
//!
//! Source: `event.proto`, `summary.proto`, `tensor.proto` of TensorFlow. The numbers of fields are
//! in the comments beside them.

/// A message that is being written.
#[derive(Default)]
pub struct Message(pub Vec<u8>);

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Appends a whole number, an enumeration or a truth value.
    pub fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3 | VARINT);
        self.varint(value);
        self
    }

    pub fn double(mut self, field: u64, value: f64) -> Self {
        self.varint(field << 3 | FIXED64);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | FIXED32);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Appends bytes, text, a packed list or a message.
    pub fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | BYTES);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }
}

/// The value of a field that was read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    Number(u64),
    Double(f64),
    Bytes(&'a [u8]),
    /// A type that is not used here.
    Other,
}

/// Takes the next field off a message: its number and its value. Returns nothing at the end, and
/// where the message is damaged.
pub fn next<'a>(message: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = varint(message)?;
    let field = match key & 7 {
        VARINT => Field::Number(varint(message)?),
        FIXED64 => Field::Double(f64::from_le_bytes(take(message, 8)?.try_into().ok()?)),
        BYTES => {
            let len = varint(message)?;
            Field::Bytes(take(message, usize::try_from(len).ok()?)?)
        }
        FIXED32 => take(message, 4).map(|_| Field::Other)?,
        _ => return None,
    };
    Some((key >> 3, field))
}

fn take<'a>(message: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = message.split_at_checked(len)?;
    *message = rest;
    Some(taken)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(message, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back() {
        let inner = Message::default().bytes(2, "é".as_bytes());
        let message =
            Message::default().number(1, u64::MAX).number(15, 300).double(16, -0.5).bytes(3, &inner.0);
        let mut rest = &message.0[..];
        assert_eq!(next(&mut rest), Some((1, Field::Number(u64::MAX))));
        assert_eq!(next(&mut rest), Some((15, Field::Number(300))));
        assert_eq!(next(&mut rest), Some((16, Field::Double(-0.5))));
        assert_eq!(next(&mut rest), Some((3, Field::Bytes(&inner.0))));
        assert_eq!(next(&mut rest), None);
        for cut in 0..message.0.len() {
            let mut rest = &message.0[..cut];
            while next(&mut rest).is_some() {}
        }
    }

    #[test]
    fn bytes_are_those_of_the_wire_format() {
        // The example of protobuf's documentation: field 1 is 150, and field 2 "testing".
        assert_eq!(Message::default().number(1, 150).0, [0x08, 0x96, 0x01]);
        assert_eq!(Message::default().bytes(2, b"testing").0, b"\x12\x07testing");
        assert_eq!(Message::default().float(2, 1.0).0, [0x15, 0, 0, 0x80, 0x3f]);
    }
}
