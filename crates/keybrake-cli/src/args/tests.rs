use clap::CommandFactory;

use super::*;

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_in_the_guide_can_be_typed() {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let lines = guide.lines().filter_map(|line| line.strip_prefix("$ keybrake "));
    let mut seen = 0;
    for line in lines.flat_map(|line| line.split("        keybrake ")) {
        seen += 1;
        let words = shell_words(line);
        let parsed = Cli::try_parse_from(std::iter::once("keybrake".to_owned()).chain(words));
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
    assert!(seen >= 7, "{seen} commands found in the guide");
}

/// Words as a shell splits them, quotes taken off.
fn shell_words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (c, quote) {
            (' ', None) => words.push(std::mem::take(&mut word)),
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            _ => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}
