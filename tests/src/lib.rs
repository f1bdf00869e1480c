//! Helpers for the tests that need root or real servers.
