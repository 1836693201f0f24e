-- When the membership ended; NULL while it lasts. A number that has been free for long enough may be given to another user.
ALTER TABLE seat ADD COLUMN freed INTEGER;
UPDATE seat SET freed = unixepoch()
    WHERE NOT EXISTS (SELECT 1 FROM membership m WHERE m.closed_group = seat.closed_group AND m.user = seat.user);
CREATE INDEX seat_freed ON seat (closed_group, freed) WHERE freed IS NOT NULL;
