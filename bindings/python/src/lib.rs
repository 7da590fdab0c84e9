//! The native half of the Python package: conversions only. What users touch is `python/keybrake`.

use pyo3::pymodule;

/// The private module `keybrake._keybrake`.
#[pymodule(gil_used = false)]
mod _keybrake {
    use pyo3::prelude::{Bound, PyModule, PyModuleMethods, PyResult};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
