-- Keys that expire, that tell when they were used, and that people can tell apart. Times are microseconds since the epoch.

ALTER TABLE keys ADD COLUMN prefix TEXT NOT NULL DEFAULT ''; -- the key's first characters; '' of keys before this version
ALTER TABLE keys ADD COLUMN expire_time_us INTEGER; -- exclusive; NULL: never
ALTER TABLE keys ADD COLUMN last_used_time_us INTEGER; -- late by a minute; NULL: not since this version

CREATE INDEX keys_by_authorization ON keys (authorization_id);
