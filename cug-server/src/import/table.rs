//! CSV.

use super::{Lines, group, problem, quoted, settings, user};
use crate::store::{Directory, DirectoryUser, LineProblem};
use csv::{ReaderBuilder, StringRecord, Trim};

/// The columns that the header names.
struct Columns {
    user: usize,
    groups: Option<usize>,
    disabled: Option<usize>,
    expires: Option<usize>,
    hours: Option<usize>,
}

pub(super) fn parse(text: &str, problems: &mut Vec<LineProblem>) -> Directory {
    let mut directory = Directory::default();
    let mut reader = ReaderBuilder::new().flexible(true).trim(Trim::All).from_reader(text.as_bytes());
    let header = match reader.headers() {
        Ok(header) => header.clone(),
        Err(error) => {
            problems.push(problem(1, format!("cannot be read: {error}")));
            return directory;
        }
    };
    let Some(columns) = columns(&header, problems) else { return directory };
    let mut record = StringRecord::new();
    let mut lines = Lines::new(text);
    loop {
        // Where the reader stands, line ends may come first: the second half of the last one's, and empty lines.
        let stands = usize::try_from(reader.position().byte()).unwrap_or(usize::MAX);
        let ends = text.as_bytes().get(stands..).unwrap_or_default().iter().take_while(|b| matches!(b, b'\r' | b'\n'));
        let line = lines.at(stands.saturating_add(ends.count()));
        match reader.read_record(&mut record) {
            Ok(false) => return directory,
            Ok(true) => match row(&columns, &header, &record, line) {
                Ok(user) => directory.users.push(user),
                Err(sentences) => problems.extend(sentences.into_iter().map(|s| problem(line, s))),
            },
            Err(error) => {
                problems.push(problem(line, format!("cannot be read: {error}")));
                if error.is_io_error() {
                    return directory;
                }
            }
        }
    }
}

fn columns(header: &StringRecord, problems: &mut Vec<LineProblem>) -> Option<Columns> {
    let before = problems.len();
    let (mut name, mut groups, mut disabled, mut expires, mut hours) = (None, None, None, None, None);
    for (index, column) in header.iter().enumerate() {
        let place = match column {
            "user" => &mut name,
            "groups" => &mut groups,
            "disabled" => &mut disabled,
            "expires" => &mut expires,
            "hours" => &mut hours,
            other => {
                let known = "user, groups, disabled, expires, hours";
                let sentence = format!("there is no column {}: the first line names {known}", quoted(other));
                problems.push(problem(1, sentence));
                continue;
            }
        };
        if place.replace(index).is_some() {
            problems.push(problem(1, format!("the column {column:?} is there twice")));
        }
    }
    if name.is_none() {
        problems.push(problem(1, "the first line must name the columns, and one of them must be user"));
    }
    let columns = name.map(|user| Columns { user, groups, disabled, expires, hours });
    columns.filter(|_| problems.len() == before)
}

fn row(
    columns: &Columns,
    header: &StringRecord,
    record: &StringRecord,
    line: u64,
) -> Result<DirectoryUser, Vec<String>> {
    let mut wrong = Vec::new();
    if record.len() != header.len() {
        wrong.push(format!("has {} fields, and the first line has {}", record.len(), header.len()));
        return Err(wrong);
    }
    let field = |index: Option<usize>| index.and_then(|i| record.get(i)).unwrap_or_default();
    let user = user(field(Some(columns.user)));
    let mut groups = Vec::new();
    for name in field(columns.groups).split([';', ' ']).filter(|name| !name.is_empty()) {
        match group(name) {
            Ok(group) => groups.push(group),
            Err(sentence) => wrong.push(sentence),
        }
    }
    let disabled = match field(columns.disabled) {
        "yes" | "true" | "1" => true,
        "" | "no" | "false" | "0" => false,
        other => {
            wrong.push(format!("disabled is {}; it must be yes or no", quoted(other)));
            false
        }
    };
    let settings = settings(field(columns.expires), field(columns.hours), &mut wrong);
    match user {
        Ok(user) if wrong.is_empty() => Ok(DirectoryUser { line, user, disabled, groups, settings }),
        Ok(_) => Err(wrong),
        Err(sentence) => {
            wrong.insert(0, sentence);
            Err(wrong)
        }
    }
}
