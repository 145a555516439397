// Package outbound holds one SMTP conversation as a client, and the pool of
// open ones.
//
// It promises: every stage has a deadline that a dripping server cannot extend;
// every reply is bounded before it is kept; the bytes after 354 are exactly the
// bytes handed in, dot-stuffed, or the message is refused before anything of it
// is sent; behind the final dot nothing is written before its reply but, if the
// caller wants that, the commands of the next message, and then the reply counts
// only when theirs are in step; and every recipient gets one outcome in the
// server's own words, with Unknown where nobody can settle it: a connection lost
// between the final dot and its reply, or a reply that may be another's.
//
// It leaves to others: which host to call and under which TLS policy
// (mta/mx), how many connections may be open (throttle), what a reply means
// (bounce), and when to try again (mta).
//
// Deadlines are taken from time.Now, because they must agree with the timers
// of the connections; inside a testing/synctest bubble both are virtual.
package outbound
