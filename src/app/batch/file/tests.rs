use super::*;

fn parsed(text: &str, format: FileFormat) -> JobFile {
    JobFile::parse(Path::new("jobs"), text, format).expect("a job file")
}

fn refused(text: &str, format: FileFormat) -> String {
    JobFile::parse(Path::new("jobs"), text, format).expect_err("no job file").to_string()
}

/// Line, then keys and values, of each job.
fn told(file: &JobFile) -> Vec<String> {
    let block = |block: &Result<Block, Mistake>| match block {
        Ok(block) => {
            let entries: Vec<_> = block.entries.iter().map(|e| format!("{}={:?}", e.key, e.value)).collect();
            format!("{}: {}", block.spot.line, entries.join(" "))
        }
        Err(mistake) => format!("{}:{}: {}", mistake.spot.line, mistake.spot.column, mistake.error),
    };
    file.blocks.iter().map(block).collect()
}

#[test]
fn toml_has_defaults_and_jobs_in_their_order() {
    let text = "steps = 8\n\n[[job]]\nseed = [1, 0x10]\nprompt = \"a\"\n\n[[job]]\nprompt = 'b'\npreview = true\nfps = 1_0.5\n";
    let file = parsed(text, FileFormat::Toml);
    assert_eq!(
        file.head,
        [Entry { key: "steps".into(), spot: Spot { line: 1, column: 1 }, value: Value::Text("8".into()) }]
    );
    assert_eq!(
        told(&file),
        [
            r#"3: seed=List([Text("1"), Text("16")]) prompt=Text("a")"#,
            r#"7: prompt=Text("b") preview=Bool(true) fps=Text("10.5")"#
        ]
    );
    assert_eq!(file.blocks[1].as_ref().expect("a job").entries[1].spot, Spot { line: 9, column: 1 });
    assert_eq!(told(&parsed("prompt = \"alone\"\n", FileFormat::Toml)), ["1: "]);
    assert!(refused("steps = 8\nprompt = \"a\n", FileFormat::Toml).starts_with("jobs:2:"));
    assert!(refused("[job]\nprompt = \"a\"\n", FileFormat::Toml).contains("in two brackets"));
    let file = parsed("[[job]]\nprompt = {}\n[[job]]\nprompt = \"b\"", FileFormat::Toml);
    assert_eq!(told(&file)[1], r#"3: prompt=Text("b")"#);
    assert!(told(&file)[0].starts_with("2:1: invalid value"));
}

#[test]
fn a_bad_line_of_json_leaves_the_others() {
    let text = "{\"defaults\": {\"steps\": 4}}\n{\"prompt\": \"a\", \"seed\": null}\n\n{\"prompt\": \n{\"prompt\": \"c\"}\n";
    let file = parsed(text, FileFormat::JsonLines);
    assert_eq!(file.head.len(), 1);
    let told = told(&file);
    assert_eq!((told[0].as_str(), told[2].as_str()), (r#"2: prompt=Text("a")"#, r#"5: prompt=Text("c")"#));
    assert!(told[1].starts_with("4:11: invalid JSON: EOF while parsing"), "{}", told[1]);
}

#[test]
fn csv_counts_its_lines_through_quotes_and_blanks() {
    let text = "prompt,seed\r\n\"a, \"\"b\"\"\nc\",1\n\nd,\ne\nf,2\n";
    assert_eq!(
        told(&parsed(text, FileFormat::Csv)),
        [
            "2: prompt=Text(\"a, \\\"b\\\"\\nc\") seed=Text(\"1\")",
            "5: prompt=Text(\"d\")",
            "6:1: invalid line of 1 fields: expected 2, as many as there are keys",
            "7: prompt=Text(\"f\") seed=Text(\"2\")",
        ]
    );
    assert!(refused("prompt,,seed\n", FileFormat::Csv).contains("column 2 has no name"));
}

#[test]
fn prompts_are_lines() {
    let told = told(&parsed("\u{feff}# mine\na fox\n\n  a dog \n", FileFormat::Prompts));
    assert_eq!(told, [r#"2: prompt=Text("a fox")"#, r#"4: prompt=Text("a dog")"#]);
}

#[test]
fn formats_go_by_the_ending() {
    let of = |path: &str, text: &str| FileFormat::of(Path::new(path), text);
    assert_eq!(of("a.JSONL", "").expect("known"), FileFormat::JsonLines);
    assert_eq!(of("-", " {\"prompt\"").expect("known"), FileFormat::JsonLines);
    assert_eq!(of("-", "a fox").expect("known"), FileFormat::Prompts);
    assert!(matches!(of("jobs.yaml", ""), Err(Error::UnknownEnding { .. })));
}
