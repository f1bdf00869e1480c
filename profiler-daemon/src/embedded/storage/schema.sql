-- Tables of profilerd.db, version 3. `task` in other tables is task.key.

CREATE TABLE task (
    key INTEGER PRIMARY KEY, -- in the order of creation
    id TEXT NOT NULL UNIQUE,
    service TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    start_ms INTEGER NOT NULL,
    duration_minutes INTEGER NOT NULL,
    min_duration_threshold_ms INTEGER NOT NULL,
    dump_period_ms INTEGER NOT NULL,
    max_sampling_count INTEGER NOT NULL,
    create_ms INTEGER NOT NULL,
    lost INTEGER NOT NULL DEFAULT 0, -- snapshots that were not stored
    cancelled_ms INTEGER -- by a user, then
) STRICT;

CREATE TABLE task_log (
    key INTEGER PRIMARY KEY,
    task INTEGER NOT NULL REFERENCES task ON DELETE CASCADE,
    instance TEXT NOT NULL,
    operation TEXT NOT NULL,
    time_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX task_log_task ON task_log (task);

-- What an instance reported last, as profilerd.v1.Coverage.
CREATE TABLE coverage (
    task INTEGER NOT NULL REFERENCES task ON DELETE CASCADE,
    instance TEXT NOT NULL,
    message BLOB NOT NULL,
    PRIMARY KEY (task, instance)
) STRICT, WITHOUT ROWID;

-- Sentences about losses in the store.
CREATE TABLE note (
    key INTEGER PRIMARY KEY,
    task INTEGER NOT NULL REFERENCES task ON DELETE CASCADE,
    text TEXT NOT NULL,
    UNIQUE (task, text)
) STRICT;

CREATE TABLE instance (
    service TEXT NOT NULL,
    name TEXT NOT NULL,
    last_seen_ms INTEGER NOT NULL,
    properties TEXT NOT NULL, -- JSON object
    PRIMARY KEY (service, name)
) STRICT, WITHOUT ROWID;

-- What a service was seen to be asked for.
CREATE TABLE endpoint (
    service TEXT NOT NULL,
    name TEXT NOT NULL,
    last_seen_ms INTEGER NOT NULL,
    PRIMARY KEY (service, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE segment (
    key INTEGER PRIMARY KEY, -- in the order of arrival
    id TEXT NOT NULL UNIQUE,
    trace_id TEXT NOT NULL,
    service TEXT NOT NULL,
    instance TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    start_ms INTEGER NOT NULL,
    end_ms INTEGER NOT NULL,
    status INTEGER,
    loose INTEGER NOT NULL, -- 1: no task has a snapshot of it
    tags TEXT NOT NULL DEFAULT '[]', -- JSON array of arrays of key and value
    is_error INTEGER NOT NULL DEFAULT 0,
    spans BLOB NOT NULL DEFAULT x'' -- a SegmentObject with nothing but spans
) STRICT;
CREATE INDEX segment_trace ON segment (trace_id);
CREATE INDEX segment_loose ON segment (key) WHERE loose = 1;

-- A segment, arrived or not, that a task has snapshots of.
CREATE TABLE task_segment (
    key INTEGER PRIMARY KEY,
    task INTEGER NOT NULL REFERENCES task ON DELETE CASCADE,
    segment_id TEXT NOT NULL,
    UNIQUE (task, segment_id)
) STRICT;
CREATE INDEX task_segment_segment ON task_segment (segment_id);

CREATE TABLE text (
    key INTEGER PRIMARY KEY,
    task INTEGER NOT NULL REFERENCES task ON DELETE CASCADE,
    text TEXT NOT NULL,
    UNIQUE (task, text)
) STRICT;

CREATE TABLE stack (
    key INTEGER PRIMARY KEY,
    task INTEGER NOT NULL REFERENCES task ON DELETE CASCADE,
    texts BLOB NOT NULL, -- text.key, four bytes each, little endian, root first
    UNIQUE (task, texts)
) STRICT;

-- No foreign key on the stack: each removed stack would be looked for in all snapshots.
CREATE TABLE snapshot (
    segment INTEGER NOT NULL REFERENCES task_segment ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    unix_ms INTEGER NOT NULL,
    stack INTEGER NOT NULL,
    PRIMARY KEY (segment, sequence)
) STRICT, WITHOUT ROWID;
