//! Cross-crate tests live in `tests/`; what they share with their helper programs is here.

pub mod books;
