// Package bounce understands what comes back after mail was sent: bounces,
// delay warnings, complaints and automatic answers (Parse), and the replies of
// servers during the sending itself (Classifier). It also writes the delivery
// status notifications we owe to others (Compose).
//
// It promises that nothing in a report can make it panic, hang or use memory
// beyond a small multiple of the part it looks at; that an automatic answer is
// never taken for a failure; and that Suppress is set only when the server's
// words leave no doubt that the mailbox or its domain is gone. What it cannot
// read becomes KindNone with whatever was found, for the caller to keep.
//
// It leaves to others to decide whether a report is genuine: everything here
// comes from the report's own text, which anyone can forge. Report.Tokens
// hands out the places where a sealed token of ours may be found.
package bounce
