-- What erased users had switched off (as in users): hash: HMAC of tenant and user id. Gone once there is a user of the id.
CREATE TABLE opt_outs (
    hash TEXT PRIMARY KEY,
    paused BIGINT NOT NULL,
    learn_off BIGINT NOT NULL
);
