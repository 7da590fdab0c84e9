//! The operations of a random sequence.

use keybrake::ledger::{OnRepeat, Proof};
use keybrake::money::Usd;
use proptest::prelude::*;

use super::super::world::{absent, dollars, no_proof, operator};

/// One operation. Indices are taken modulo what there is.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Reserve {
        key: usize,
        usd: i64,
        identity: Identity,
        wire: bool,
        customer: u8,
        raise: Option<u8>,
        on_repeat: OnRepeat,
        read: bool,
    },
    /// The same request once more, under the same call id.
    Again {
        call: usize,
    },
    Settle(Settle),
    Advance {
        ms: i64,
    },
    Sweep,
    Stop {
        scope: usize,
    },
    Resume {
        scope: usize,
    },
    Revoke {
        key: usize,
    },
    Rotate {
        key: usize,
    },
    Cap {
        budget: usize,
        usd: i64,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Identity {
    None,
    Step(u8),
    Content,
    CallerKey(u8),
    Transport(u8),
}

#[derive(Clone, Debug)]
pub(super) struct Settle {
    pub(super) grant: usize,
    /// By reconciliation or a person: attempt 0.
    pub(super) by_hand: bool,
    pub(super) proof: Proof,
    pub(super) object: Option<(u8, i64, bool)>,
    pub(super) replayed: bool,
    /// The object that the reply shows.
    pub(super) shows: Option<u8>,
}

pub(super) fn sequences() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(operation(), 1..50)
}

fn operation() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => reserve(),
        2 => any::<usize>().prop_map(|call| Op::Again { call }),
        14 => settle().prop_map(Op::Settle),
        4 => prop_oneof![
            Just(1_000),
            Just(60_000),
            Just(140_000),
            Just(600_000),
            Just(3_600_000),
            Just(46_800_000),
            Just(90_000_000),
            Just(260_000_000),
        ]
        .prop_map(|ms| Op::Advance { ms }),
        1 => Just(Op::Sweep),
        1 => any::<usize>().prop_map(|scope| Op::Stop { scope }),
        2 => any::<usize>().prop_map(|scope| Op::Resume { scope }),
        1 => any::<usize>().prop_map(|key| Op::Revoke { key }),
        1 => any::<usize>().prop_map(|key| Op::Rotate { key }),
        1 => (any::<usize>(), 0..150_i64).prop_map(|(budget, usd)| Op::Cap { budget, usd }),
    ]
}

fn reserve() -> impl Strategy<Value = Op> {
    let identity = prop_oneof![
        2 => Just(Identity::None),
        4 => (0..3_u8).prop_map(Identity::Step),
        2 => Just(Identity::Content),
        2 => (0..2_u8).prop_map(Identity::CallerKey),
        1 => (0..2_u8).prop_map(Identity::Transport),
    ];
    let on_repeat = prop_oneof![
        3 => Just(OnRepeat::Replay),
        1 => Just(OnRepeat::Refuse),
        1 => Just(OnRepeat::Execute),
    ];
    (
        any::<usize>(),
        prop_oneof![Just(5_i64), Just(20), Just(20), Just(45), 0..70_i64],
        identity,
        prop::bool::weighted(0.15),
        0..2_u8,
        proptest::option::weighted(0.3, 0..2_u8),
        on_repeat,
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(key, usd, identity, wire, customer, raise, on_repeat, read)| Op::Reserve {
                key,
                usd,
                identity,
                wire,
                customer,
                raise,
                on_repeat,
                read,
            },
        )
}

fn settle() -> impl Strategy<Value = Settle> {
    let usd = || prop_oneof![Just(5_i64), Just(20), 0..90_i64].prop_map(dollars);
    let charged = |provisional: bool| {
        move |actual: Usd| {
            if provisional {
                Proof::ChargedProvisionally { actual }
            } else {
                Proof::Charged { actual }
            }
        }
    };
    let proof = prop_oneof![
        5 => usd().prop_map(charged(false)),
        1 => usd().prop_map(charged(true)),
        2 => Just(Proof::Accepted),
        3 => Just(Proof::DidNotExecute),
        2 => Just(Proof::FailedForGood),
        2 => Just(Proof::Reversed),
        4 => Just(no_proof("timeout")),
        2 => Just(Proof::NeverSent),
        1 => Just(absent()),
        1 => proptest::option::of(0..90_i64).prop_map(operator),
    ];
    let object = proptest::option::weighted(0.3, (0..2_u8, 0..90_i64, any::<bool>()));
    (
        any::<usize>(),
        prop::bool::weighted(0.15),
        proof,
        object,
        prop::bool::weighted(0.2),
        proptest::option::weighted(0.7, 0..2_u8),
    )
        .prop_map(|(grant, by_hand, proof, object, replayed, shows)| Settle {
            grant,
            by_hand: by_hand
                || matches!(
                    proof,
                    Proof::Absent { .. } | Proof::Operator { .. } | Proof::Reversed
                ),
            // What never left has no reply to show an object.
            object: object.filter(|_| proof != Proof::NeverSent),
            proof,
            replayed,
            shows,
        })
}
