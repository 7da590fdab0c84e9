//! The conformance suite: what every ledger must do, whatever it is built on.
//!
//! A backend says how to make a fresh ledger ([`Fresh`]), and one line runs every case against it:
//!
//! ```
//! use keybrake_testkit::conformance::Memory;
//!
//! keybrake_testkit::conformance!(memory, Memory);
//! # fn main() {}
//! ```
//!
//! Cases are named after the invariant, scenario or lesson that they pin.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a case of the suite fails by panicking, like any test"
)]

pub mod invariants;
pub mod leases;
pub mod lessons;
mod model;
mod redis;
pub mod scenarios;
mod world;

use std::sync::Arc;

use async_trait::async_trait;
use keybrake::clock::ManualClock;
use keybrake::ledger::{Ledger, MemoryLedger};

pub use model::agrees_with_the_model;
pub use redis::Redis;
pub use world::{Call, Key, World, dollars};

/// How a backend makes ledgers for the suite.
#[async_trait]
pub trait Fresh: Send + Sync {
    /// A new, empty ledger on this clock, and whatever must live as long as it does.
    async fn fresh(&self, clock: Arc<ManualClock>) -> Box<dyn Opened>;

    /// How many random sequences the model test runs when nothing else is said.
    fn model_cases(&self) -> u32 {
        400
    }
}

/// A ledger that a backend has made.
#[async_trait]
pub trait Opened: Send + Sync {
    /// The ledger.
    fn ledger(&self) -> Arc<dyn Ledger>;

    /// The same ledger once more, as another process opens it; `None` when it lives in one process only.
    async fn again(&self) -> Option<Arc<dyn Ledger>>;
}

/// The ledger in memory.
#[derive(Clone, Copy, Debug)]
pub struct Memory;

#[async_trait]
impl Fresh for Memory {
    async fn fresh(&self, clock: Arc<ManualClock>) -> Box<dyn Opened> {
        let ledger = MemoryLedger::new(clock).expect("random bytes");
        Box::new(InMemory(Arc::new(ledger)))
    }
}

struct InMemory(Arc<MemoryLedger>);

#[async_trait]
impl Opened for InMemory {
    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::clone(&self.0) as Arc<dyn Ledger>
    }

    async fn again(&self) -> Option<Arc<dyn Ledger>> {
        None
    }
}

/// Runs every case of the suite against a backend, each as a test in a module of the backend's name.
#[macro_export]
macro_rules! conformance {
    ($backend:ident, $fresh:expr) => {
        $crate::conformance_cases! {
            $backend, $fresh;
            invariants:
                invariant_01_settled_plus_held_never_exceeds_cap,
                invariant_02_all_budgets_or_none,
                invariant_02_a_denial_changes_no_counter,
                invariant_03_one_reservation_per_generation,
                invariant_03_a_different_fingerprint_is_a_conflict,
                invariant_04_every_transition_is_idempotent,
                invariant_04_only_the_tables_cells_exist,
                invariant_05_settles_into_the_window_that_reserved_it,
                invariant_05_rolling_buckets_keep_their_place,
                invariant_06_a_hold_ends_by_proof_only,
                invariant_06_four_ways_to_end_a_hold,
                invariant_07_every_change_has_its_event,
                invariant_07_a_failed_step_leaves_nothing,
                invariant_08_stop_revoke_expiry_version_in_the_same_step,
                invariant_08_no_key_is_issued_under_a_stop,
                invariant_09_time_never_goes_back,
                invariant_10_children_never_outspend_their_parent,
                invariant_10_groups_bound_all_their_keys,
                invariant_11_a_new_key_resets_nothing,
                invariant_12_no_counter_restarts_from_zero,
                invariant_13_checkpoints_and_events_are_the_counters,
                invariant_13_the_log_is_trimmed_only_behind_every_archive_and_a_checkpoint,
                invariant_14_reserve_is_flat,
                invariant_15_a_late_permit_is_asked_for_anew,
                invariant_03_an_unknown_call_is_joined_for_23_hours,
                invariant_03_a_spend_that_was_joined_stays_one,
                invariant_06_absence_is_of_the_attempts_that_were_known,
                invariant_16_identities_outlive_their_holds;
            scenarios:
                scenario_02_joined_429,
                scenario_03_replay_confirms,
                scenario_04_cheap_create_dear_update,
                scenario_04_captures_are_cumulative,
                scenario_04_a_declined_confirm_keeps_the_creation,
                a_reversal_restores_the_window_that_counted_it,
                a_failed_payout_stays_failed_whenever_its_acceptance_is_told,
                a_replay_is_anothers_only_if_it_shows_the_same_object,
                a_replay_on_a_named_object_is_anothers_for_23_hours,
                a_call_that_is_held_again_can_be_resolved_again,
                a_person_decides_only_what_can_no_longer_be_in_flight,
                scenario_05_fresh_key_same_run,
                scenario_06_stop_then_issue,
                scenario_07_ambiguous_reserve,
                scenario_08_two_zone_databases_cannot_split_a_day,
                scenario_11_a_clock_stepped_forward_a_day,
                scenario_12_same_twenty_twice,
                scenario_12_a_timeout_and_a_new_tool_call_id,
                scenario_13_two_connected_accounts_one_caller_key,
                scenario_14_step_with_a_changed_amount,
                scenario_15_denial_flood,
                scenario_16_concurrent_upper_bounds,
                scenario_19_authorise_and_cancel_a_thousand_times,
                scenario_21_observe_child_under_an_enforcing_parent,
                scenario_22_caps_change_under_load,
                reassert_takes_over_what_was_decided,
                reassert_merges_by_rank,
                reassert_knows_histories_from_ranks,
                reassert_counts_in_the_window_that_reserved_it,
                reassert_keeps_the_last_act,
                reassert_restores_exposure,
                reassert_refuses_what_no_ledger_wrote;
            leases:
                scenario_20_leases,
                a_lease_is_told_in_numbered_steps,
                a_lease_that_is_not_given_back_is_forfeited,
                a_forfeited_leases_calls_are_told_late_and_once,
                rows_of_a_lease_that_the_ledger_lost_are_told_once,
                a_lease_leaves_room_for_others_and_for_the_last_unit,
                a_lease_ends_with_its_window,
                a_rolling_window_is_leased_one_bucket_at_a_time,
                a_leased_call_ends_as_any_other,
                a_call_under_way_becomes_a_hold_of_its_own,
                a_stop_refuses_a_renewal_and_waits_for_the_lease,
                a_lowered_cap_refuses_a_renewal,
                a_lease_that_is_said_again_goes_on_from_its_last_step,
                a_stop_waits_for_a_lease_that_was_said_again,
                a_key_has_so_many_leases_below_it_and_no_more,
                a_revocation_waits_for_the_leases_of_descendants;
            lessons:
                lesson_01_hold_is_never_shrunk,
                lesson_02_settles_where_it_was_reserved,
                lesson_03_overrun_is_recorded_in_full,
                lesson_04_a_childs_spend_is_the_parents,
                lesson_05_exactly_as_many_as_fit,
                lesson_06_settling_twice_counts_once,
                lesson_07_rotating_a_key_keeps_its_budget,
                lesson_09_an_exception_after_dispatch_keeps_the_hold,
                lesson_10_a_cancelled_call_is_kept_and_resolvable,
                lesson_11_leaked_holds_are_listed_and_resolved,
                lesson_13_an_unknown_budget_is_refused,
                lesson_14_a_decline_opens_the_next_generation,
                lesson_14_declines_are_bounded,
                lesson_15_a_replayed_success_counts_nothing_new,
                lesson_17_the_ledgers_clock_decides_expiry,
                lesson_18_a_denial_is_flat_in_holds,
                lesson_19_a_revoked_key_is_refused_at_once;
        }
    };
}

/// One test for each case. Used by [`conformance!`].
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    ($backend:ident, $fresh:expr; $($part:ident: $($case:ident),+;)+) => {
        mod $backend {
            #[expect(unused_imports, reason = "the backend's type may stand beside the macro or come by path")]
            use super::*;

            #[test]
            fn agrees_with_the_model() {
                let cases = $crate::conformance::Fresh::model_cases(&$fresh);
                $crate::conformance::agrees_with_the_model(&$fresh, cases);
            }

            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let world = $crate::conformance::World::new(&$fresh).await;
                    $crate::conformance::$part::$case(&world).await;
                    world.books_agree().await;
                }
            )+)+
        }
    };
}
