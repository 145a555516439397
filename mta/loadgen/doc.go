// Package loadgen holds both ends of a test: a Sink that receives mail and can
// play several mailbox providers, and a Source that makes it.
//
// Both are cheap enough to leave the cores to the MTA between them, and both
// keep exact counts, so that what was acknowledged, delivered and lost can be
// added up. Neither belongs in the path of real mail: the Sink stores nothing
// and takes anything from anybody.
package loadgen
