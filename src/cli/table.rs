//! Columns and sizes for people.

/// Rows with their columns aligned.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Bytes in the unit that keeps the number short.
pub fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, one) in units {
        let count = bytes / one as f64;
        if count >= 1.0 {
            return if count < 10.0 { format!("{count:.1} {unit}") } else { format!("{count:.0} {unit}") };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a".to_owned(), "bé".into(), "c".into()], ["aaa".into(), "b".into(), String::new()]];
        assert_eq!(table(&rows), "a    bé  c\naaa  b\n");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(12), "12 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(9_790_000_000), "9.1 GiB");
        assert_eq!(size(200 << 20), "200 MiB");
    }
}
