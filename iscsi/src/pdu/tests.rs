//! Headers as literal bytes, both ways.
