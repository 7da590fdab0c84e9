//! The conformance suite, for every backend.

use keybrake_testkit::conformance;
use keybrake_testkit::conformance::Memory;

conformance!(memory, Memory);
