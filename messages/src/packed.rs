//! Reads any JSON value straight into the MessagePack that it travels as, and writes it from there, without a tree of it in
//! between.
//!
//! As strict as a body: a repeated key is refused, of which a plain reader would keep the last one and lose the others, and
//! so is a number that is not finite.

use std::{cell::Cell, fmt, io::Cursor, ops::Range};

use rmp::{
    Marker,
    decode::{self, Bytes},
    encode::{self, ByteBuf, ValueWriteError},
};
use serde::{
    Serialize, Serializer,
    de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor},
    ser::{self, SerializeMap as _, SerializeSeq as _},
};

/// How an array or a map begins.
type Head = Cursor<[u8; 5]>;

/// Gathers values in the order in which they are read. To write to memory cannot fail.
pub(crate) struct Packer {
    bytes: ByteBuf,
    /// Where the names are that were read of the maps that are open.
    names: Vec<Range<usize>>,
}

impl Packer {
    pub(crate) fn new() -> Self {
        Self { bytes: ByteBuf::with_capacity(256), names: Vec::new() }
    }

    /// What was gathered.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_vec()
    }

    /// Begins a value with others in it, whose number is known when they have been read. Answers where it begins.
    fn open(&mut self) -> usize {
        let bytes = self.bytes.as_mut_vec();
        bytes.push(0);
        bytes.len() - 1
    }

    /// Writes how many there are into the place that was left for it, and makes room where that is too small.
    fn close<E: de::Error>(
        &mut self,
        begin: usize,
        count: usize,
        write: impl FnOnce(&mut Head, u32) -> Result<Marker, ValueWriteError>,
    ) -> Result<(), E> {
        let mut head = Head::default();
        _ = write(&mut head, u32::try_from(count).map_err(E::custom)?);
        let length = usize::try_from(head.position()).map_err(E::custom)?;
        self.bytes.as_mut_vec().splice(begin..=begin, head.get_ref()[..length].iter().copied());
        Ok(())
    }

    /// Refuses a name that the map has twice, whose names begin with this one.
    fn check_names<E: de::Error>(&mut self, first: usize) -> Result<(), E> {
        let Self { bytes, names } = self;
        let text = |name: &Range<usize>| &bytes.as_slice()[name.clone()];
        let names = &mut names[first..];
        names.sort_unstable_by(|one, other| text(one).cmp(text(other)));
        match names.windows(2).find(|two| text(&two[0]) == text(&two[1])) {
            Some(two) => Err(E::custom(format_args!("duplicate key `{}`", String::from_utf8_lossy(text(&two[0]))))),
            None => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for &mut Packer {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Packer {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        _ = encode::write_nil(&mut self.bytes);
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        _ = encode::write_bool(&mut self.bytes, value);
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        _ = encode::write_sint(&mut self.bytes, value);
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        _ = encode::write_uint(&mut self.bytes, value);
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        if !value.is_finite() {
            return Err(E::custom("invalid value: a number must be finite"));
        }
        _ = encode::write_f64(&mut self.bytes, value);
        Ok(())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        _ = encode::write_str(&mut self.bytes, value);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let (begin, mut count) = (self.open(), 0);
        while items.next_element_seed(&mut *self)?.is_some() {
            count += 1;
        }
        self.close(begin, count, encode::write_array_len)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let (begin, first) = (self.open(), self.names.len());
        while entries.next_key_seed(Name(self))?.is_some() {
            entries.next_value_seed(&mut *self)?;
        }
        self.check_names(first)?;
        let count = self.names.len() - first;
        self.names.truncate(first);
        self.close(begin, count, encode::write_map_len)
    }
}

/// Reads the name of an entry.
struct Name<'a>(&'a mut Packer);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<(), E> {
        _ = encode::write_str(&mut self.0.bytes, name);
        let end = self.0.bytes.as_slice().len();
        self.0.names.push(end - name.len()..end);
        Ok(())
    }

    fn visit_bytes<E: de::Error>(self, name: &[u8]) -> Result<(), E> {
        let text = str::from_utf8(name).map_err(|_| E::invalid_value(Unexpected::Bytes(name), &self))?;
        self.visit_str(text)
    }
}

/// What a [`Packer`] has gathered, for any serializer: the next value is written with each call, and what follows it is left.
pub(crate) struct Replay<'a>(Cell<&'a [u8]>);

impl<'a> Replay<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(Cell::new(bytes))
    }

    /// Reads what a value is, or how many others are in it.
    fn read<T, E: fmt::Debug, S: ser::Error>(&self, read: impl FnOnce(&mut Bytes<'a>) -> Result<T, E>) -> Result<T, S> {
        let mut bytes = Bytes::new(self.0.get());
        let value = read(&mut bytes).map_err(broken)?;
        self.0.set(bytes.remaining_slice());
        Ok(value)
    }
}

impl Serialize for Replay<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.0.get();
        match Marker::from_u8(bytes.first().copied().unwrap_or_default()) {
            Marker::Null => {
                self.read(decode::read_nil)?;
                serializer.serialize_unit()
            }
            Marker::True | Marker::False => serializer.serialize_bool(self.read(decode::read_bool)?),
            // Most numbers are in their own marker.
            Marker::FixPos(number) if !bytes.is_empty() => {
                self.0.set(&bytes[1..]);
                serializer.serialize_u64(number.into())
            }
            Marker::U8 | Marker::U16 | Marker::U32 | Marker::U64 => {
                serializer.serialize_u64(self.read(decode::read_int)?)
            }
            Marker::FixNeg(_) | Marker::I8 | Marker::I16 | Marker::I32 | Marker::I64 => {
                serializer.serialize_i64(self.read(decode::read_int)?)
            }
            Marker::F64 => serializer.serialize_f64(self.read(decode::read_f64)?),
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                let (text, rest) = decode::read_str_from_slice(bytes).map_err(broken)?;
                self.0.set(rest);
                serializer.serialize_str(text)
            }
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
                let count: u32 = self.read(decode::read_array_len)?;
                let mut items = serializer.serialize_seq(usize::try_from(count).ok())?;
                for _ in 0..count {
                    items.serialize_element(self)?;
                }
                items.end()
            }
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
                let count: u32 = self.read(decode::read_map_len)?;
                let mut entries = serializer.serialize_map(usize::try_from(count).ok())?;
                for _ in 0..count {
                    entries.serialize_key(self)?;
                    entries.serialize_value(self)?;
                }
                entries.end()
            }
            marker => Err(broken(marker)),
        }
    }
}

/// No [`Packer`] has written this.
fn broken<E: ser::Error>(why: impl fmt::Debug) -> E {
    E::custom(format_args!("not what was read: {why:?}"))
}
