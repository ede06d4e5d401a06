//! Reading guest RAM at memory speed. This file is the crate's unsafe room.
