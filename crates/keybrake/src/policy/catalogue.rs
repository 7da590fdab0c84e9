//! What the policy needs to know of vendors. `vendors` implements it, so that imports keep pointing left.

/// One operation as a policy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationInfo {
    /// Dotted name, such as `refunds.create`.
    pub name: &'static str,
    /// HTTP method, upper case.
    pub method: &'static str,
    /// Path with `*` for ids, such as `/v1/charges/*`.
    pub path: &'static str,
    /// Free and effect-free: part of `reads`.
    pub read: bool,
    /// Starts repeated billing (`recurring`), such as creating a subscription.
    pub recurring: bool,
}

/// The vendors that are built in, and what can be done with each.
pub trait Catalogue {
    /// Names of all vendors, such as `stripe`.
    fn vendors(&self) -> Vec<&'static str>;

    /// A vendor's operations, none for an unknown vendor. Of two operations that match one path, the one with
    /// more literal segments is meant.
    fn operations(&self, vendor: &str) -> Vec<OperationInfo>;
}
