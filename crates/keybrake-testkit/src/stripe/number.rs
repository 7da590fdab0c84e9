//! Conversions between integer widths that cannot fail for the values at hand, without `as`.

/// An index from a small number; too large becomes the largest index, which no table has.
pub(super) fn usize_of<T: TryInto<usize>>(value: T) -> usize {
    value.try_into().unwrap_or(usize::MAX)
}

/// A count as a number that JSON and the journal use.
pub(super) fn u64_of(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Whole seconds of a time in milliseconds.
pub(super) fn seconds(ms: i64) -> i64 {
    ms.div_euclid(1_000)
}
