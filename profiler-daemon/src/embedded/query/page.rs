//! Orders and pages of lists.

use async_graphql::{Enum, InputObject, Result};

/// Most entries of a page; usual ones have 20 to 100.
const PAGE_MAX: usize = 500;
/// Entries of a page whose size is not above zero, as in OAP.
const PAGE_DEFAULT: usize = 15;

#[derive(Clone, Copy, Debug, Enum, PartialEq, Eq)]
pub(super) enum Order {
    Asc,
    Des,
}

#[derive(Debug, InputObject)]
pub(super) struct Pagination {
    /// From 1, which is taken if it is not given.
    page_num: Option<i32>,
    page_size: i32,
}

impl Pagination {
    /// How many entries come before the page, and how many it may have.
    pub(super) fn window(&self) -> Result<(usize, usize)> {
        let size = usize::try_from(self.page_size).unwrap_or_default();
        let size = if size == 0 { PAGE_DEFAULT } else { size };
        if size > PAGE_MAX {
            return Err(
                format!("a page of {size} entries was asked for, it may have {PAGE_MAX}").into(),
            );
        }
        let before = self.page_num.unwrap_or(1).saturating_sub(1);
        let before = usize::try_from(before).unwrap_or_default();
        Ok((before.saturating_mul(size), size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check what pages begin with, also those that no list has, and that a page has a bound.
    #[test]
    fn pages_follow_each_other() {
        let window = |page_num, page_size| {
            Pagination {
                page_num,
                page_size,
            }
            .window()
        };
        for (number, size, expected) in [
            (None, 20, (0, 20)),
            (Some(1), 20, (0, 20)),
            (Some(3), 20, (40, 20)),
            (Some(0), 0, (0, 15)),
            (Some(-7), -1, (0, 15)),
            (Some(i32::MAX), 500, ((i32::MAX as usize - 1) * 500, 500)),
        ] {
            assert_eq!(window(number, size).unwrap(), expected);
        }
        assert!(window(None, 501).unwrap_err().message.contains("500"));
    }
}
