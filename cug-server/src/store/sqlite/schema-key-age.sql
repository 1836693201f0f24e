-- When the newest key of the group was made; NULL: with the group.
ALTER TABLE closed_group ADD COLUMN rotated INTEGER;
