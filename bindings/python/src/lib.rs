//! The native half of the Python package: conversions only. What users touch is `python/keybrake`.

mod call;
mod engine;
mod errors;
mod helpers;
mod simulator;
mod stream;
mod wait;

use pyo3::pymodule;

/// The private module `keybrake._keybrake`.
#[pymodule(gil_used = false)]
mod _keybrake {
    use pyo3::prelude::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_export]
    use crate::call::Answer;
    #[pymodule_export]
    use crate::engine::{Engine, Task};
    #[pymodule_export]
    use crate::helpers::{
        after_fork, before_fork, cli, content_key, for_model, item_key, operations, panic, step_key,
    };
    #[pymodule_export]
    use crate::simulator::Simulator;
    #[pymodule_export]
    use crate::stream::Stream;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
