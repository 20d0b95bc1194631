-- restores: of a version that "Undo" or "Redo" made, the one whose content it has.
ALTER TABLE summaries ADD COLUMN restores BIGINT;
