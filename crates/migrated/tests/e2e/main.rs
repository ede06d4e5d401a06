//! Two daemons on two hosts (network namespaces joined by a veth pair), driven from outside as
//! people do: over the API's Unix socket and by the command line. What is checked is what they see.

mod client;
mod guest;
mod host;
mod lab;
mod netns;
mod proxy;
mod record;
mod witness;

mod bridges;
mod console;
mod control;
mod cpu;
mod following;
mod garbage;
mod kernel;
mod kills;
mod links;
mod moves;
mod plan;
mod postcopy;
mod reconnects;
mod refused;
mod throttle;
