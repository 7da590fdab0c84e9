//! The options of a document: closed lists of words.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::reader::choice;
use crate::error::Result;

/// A closed list of words: the enum, its readers' table and its serialised form, in one place.
macro_rules! words {
    ($(#[$doc:meta])* $vis:vis $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
        $vis enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }
        impl $name {
            pub(crate) const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];
        }
    };
}

words! {
    /// What a day is in the short forms.
    #[derive(Default)]
    pub(crate) DayWindow {
        /// A calendar day in the policy's time zone.
        #[default] CalendarDay = "calendar_day",
        /// The last 24 hours.
        Rolling24h = "rolling_24h",
    }
}
words! {
    /// How repeats of a call are recognised.
    #[derive(Default)]
    pub Idempotency {
        /// By the caller's key, a step, an item, or the content.
        #[default] Auto = "auto",
        /// Every write must carry a key, a step or an item.
        Require = "require",
        /// Not at all; transport attempts only.
        Off = "off",
    }
}
words! {
    /// What to do when the request does not say what the call costs.
    #[derive(Default)]
    pub UnknownCost {
        /// One bounded read where that answers it, else refuse.
        #[default] Lookup = "lookup",
        /// Refuse.
        Deny = "deny",
    }
}
words! {
    /// When a payment whose client secret leaves the process counts.
    #[derive(Default)]
    pub CountIntents {
        /// When it is created.
        #[default] AtCreation = "at_creation",
        /// When it is confirmed.
        AtConfirm = "at_confirm",
    }
}
words! {
    /// Whose idempotency keys are on the calls, where that cannot be known.
    pub CallerKeys {
        /// The caller's: forward them and take them as the call's identity.
        Trust = "trust",
        /// The SDK's: replace them.
        Replace = "replace",
    }
}
words! {
    /// What happens when the ledger cannot be reached.
    #[derive(Default)]
    pub(crate) OnLedgerUnavailable {
        /// Every call is refused.
        #[default] Deny = "deny",
        /// Reads pass.
        AllowReads = "allow_reads",
    }
}
words! {
    /// Whether the text for the model carries amounts.
    #[derive(Default)]
    pub(crate) ModelDetail {
        /// With amounts, limits and times.
        #[default] Full = "full",
        /// Only the reason.
        Reason = "reason",
    }
}
words! {
    /// Whether the policy refuses, or only watches.
    #[derive(Default)]
    pub(crate) Mode {
        /// It refuses.
        #[default] Enforce = "enforce",
        /// It counts, and says what it would have refused.
        Observe = "observe",
    }
}

/// Operations that start repeated billing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Recurring {
    /// A word: `deny` or `count_first`.
    Word(RecurringWord),
    /// How many payments count.
    Count(u32),
}

words! {
    /// Operations that start repeated billing, in a word.
    #[derive(Default)]
    pub(crate) RecurringWord {
        /// They are refused.
        #[default] Deny = "deny",
        /// Their first payment counts.
        CountFirst = "count_first",
    }
}

impl Recurring {
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
        match value.as_u64().map(u32::try_from) {
            Some(Ok(count)) => Ok(Self::Count(count)),
            _ => choice(value, place, RecurringWord::WORDS).map(Self::Word),
        }
    }
}
