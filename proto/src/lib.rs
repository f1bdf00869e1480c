//! Generated code of the protocols profilerd speaks.
