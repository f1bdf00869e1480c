//! Aligns rows of text for people.

use std::borrow::Cow;

use crate::output::clean;

/// A column is not made narrower than this for the sake of a narrow screen.
const COLUMN_MIN_CHARS: usize = 9;
const GAP: &str = "  ";

/// Rows below a head, each column as wide as its longest cell.
pub(super) fn columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<&[String]> = rows.iter().map(<[String; N]>::as_slice).collect();
    lines(&head, &rows, None)
}

/// Rows below a head without the columns that are empty, not wider than a screen: the widest columns
/// are cut first.
pub(super) fn columns_within<const N: usize>(
    head: [&str; N],
    rows: &[[String; N]],
    screen: Option<usize>,
) -> String {
    let is_used =
        |column: &usize| rows.is_empty() || rows.iter().any(|row| !row[*column].is_empty());
    let used: Vec<usize> = (0..N).filter(is_used).collect();
    let head: Vec<&str> = used.iter().map(|&column| head[column]).collect();
    let rows = rows
        .iter()
        .map(|row| used.iter().map(|&column| row[column].clone()).collect());
    let rows: Vec<Vec<String>> = rows.collect();
    let rows: Vec<&[String]> = rows.iter().map(Vec::as_slice).collect();
    lines(&head, &rows, screen)
}

fn lines(head: &[&str], rows: &[&[String]], screen: Option<usize>) -> String {
    // Cells have what others have chosen.
    let rows: Vec<Vec<Cow<'_, str>>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| clean(cell)).collect())
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let mut widths: Vec<usize> = (0..head.len()).map(width).collect();
    if let Some(screen) = screen {
        let gaps = GAP.len() * head.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > screen {
            match widths
                .iter_mut()
                .max()
                .filter(|widest| **widest > COLUMN_MIN_CHARS)
            {
                Some(widest) => *widest -= 1,
                None => break,
            }
        }
    }
    let head: Vec<Cow<'_, str>> = head.iter().map(|&title| title.into()).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(&rows) {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{:width$}", shortened(cell, width)));
        let line = cells.collect::<Vec<_>>().join(GAP);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn shortened(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    let kept = cell.chars().take(width.saturating_sub(1));
    kept.chain(['…']).collect()
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

    /// Check that no cell acts on the terminal, begins a line of its own, or is wider than it looks.
    #[test]
    fn cells_are_plain() {
        let rows = [["a\u{1b}[31m\n1  forged", "x"]].map(|row| row.map(str::to_owned));
        let text = columns(["NAME", "X"], &rows);
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().all(crate::model::plain::is_plain), "{text}");
    }

    /// Check that empty columns go and that the widest is cut to the screen.
    #[test]
    fn a_screen_is_not_exceeded() {
        let rows = [["1", "", "abcdefghijklmnop", "12345"]].map(|row| row.map(str::to_owned));
        let head = ["PID", "NONE", "NAME", "X"];
        let text = columns_within(head, &rows, Some(24));
        assert_eq!(text, "PID  NAME          X\n1    abcdefghijk…  12345\n");
        let text = columns_within(head, &rows, Some(5));
        assert!(text.contains("abcdefgh…"), "{text}");
        assert!(columns_within(head, &rows, None).contains("abcdefghijklmnop"));
    }
}
