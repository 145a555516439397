// Package crash tries the real binary: it is killed, its disk fails or fills
// up, its files rot, and a ledger kept outside decides whether every promise
// held.
//
// The ledger knows what every injector was told and what every sink received.
// Acknowledged must be a subset of delivered or finally failed; nothing may
// arrive altered; each duplicate must be explained by a kill, and no kill may
// explain more than there were transactions in flight.
package crash
