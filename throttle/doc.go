// Package throttle maps a destination to its rules and grants or delays
// permits.
//
// It promises that no limit is ever exceeded, at any instant and under any
// concurrency: a permit is given only when every applicable limit has room,
// and then all of them are charged in one step, or none is. A refusal says
// when to ask again, or that the lane will be notified, so nobody polls. It
// remembers what servers answered and holds, probes and ramps accordingly.
//
// It does no I/O, starts no goroutine, reads no clock: time is passed in. What
// must outlive a restart leaves through Snapshot and returns through Restore;
// the caller stores it. DNS, sockets, queues and retry times belong to others.
//
// Terms: a lane is one source address towards one site. Lanes whose site
// belongs to a named provider share that provider's group; any other site is a
// group by itself. All counters a permit touches, but for those of MX
// addresses, live in the lane's group and are guarded by its mutex.
//
// Lock order: Engine.mu, then group.mu (two groups only under Engine.mu), then
// Engine.mxMu or brakes.mu. Callbacks run with no lock held, but for the
// eligible function of Pick.
package throttle
