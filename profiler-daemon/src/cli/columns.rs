//! Aligns rows of text for people.

/// Rows below a head, each column as wide as its longest cell.
pub(super) fn columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in std::iter::once(&head.map(str::to_owned)).chain(rows) {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check that columns are aligned and lines have no blanks at their end.
    #[test]
    fn columns_are_aligned() {
        let rows = [["1", "ä"], ["100", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(["PID", "NAME"], &rows), "PID  NAME\n1    ä\n100\n");
    }
}
