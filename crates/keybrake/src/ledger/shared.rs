//! Values that many records share: names of counters, and facts that a reservation and its events hold together.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a counter: budget with its concrete scope, mode, and the start of the window (or bucket), `-` for
/// budgets without one. Such as `stripe|lineage:support-v2|usd|day|live|1790000000000`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterName(Arc<str>);

impl CounterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for CounterName {
    fn from(name: &str) -> Self {
        Self(Arc::from(name))
    }
}

impl From<String> for CounterName {
    fn from(name: String) -> Self {
        Self(Arc::from(name))
    }
}

impl Deref for CounterName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for CounterName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for CounterName {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for CounterName {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

impl fmt::Display for CounterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CounterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for CounterName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for CounterName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

/// A keyed hash (HMAC-SHA-256) of these parts one after the other, in hexadecimal digits.
pub(crate) fn keyed(secret: &[u8], parts: &[&[u8]]) -> Result<String> {
    let mut mac = <Hmac<Sha256>>::new_from_slice(secret)
        .map_err(|e| Error::new(ErrorKind::Internal, "a secret has no length").because(e.to_string()))?;
    for part in parts {
        mac.update(part);
    }
    Ok(hex(&mac.finalize().into_bytes()))
}

/// Two digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").ok(); // writing to a String cannot fail
        text
    })
}

/// What [`hex`] wrote; `None` for any other text.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => digit(high).zip(digit(low)).map(|(high, low)| (high << 4) | low),
        _ => None,
    };
    text.as_bytes().chunks(2).map(byte).collect()
}

/// Serde for an `Arc<T>`, written as the value itself.
pub(crate) mod arc {
    use super::{Arc, Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<T: Serialize, S: Serializer>(
        value: &Arc<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}

/// Serde for an `Option<Arc<T>>`, written as the value itself.
pub(crate) mod option_arc {
    use super::{Arc, Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde gives the field by reference")]
    pub(crate) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<Arc<T>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_deref().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<T>>, D::Error> {
        Option::<T>::deserialize(deserializer).map(|value| value.map(Arc::new))
    }
}

/// Serde for bytes in JSON.
pub(crate) mod option_base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;

    use super::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde gives the field by reference")]
    pub(crate) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => serializer.serialize_some(&STANDARD.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| STANDARD.decode(text).map_err(D::Error::custom))
            .transpose()
    }
}
