// Package shelf says which lock guards which key of a zone's certificate shelf.
//
// The edge looks up by it the lease to write under, the control node refuses by
// it what is written under another: so both must read the same rule. The names
// are certmagic's. It does no I/O, keeps nothing and is safe to call at once.
package shelf

import "strings"

// Names of locks, as certmagic makes them.
const (
	lockIssue   = "issue_cert_" // and the host
	lockAccount = "register_acme_account"
)

// IssueLock is the lock under which a host's certificate is obtained.
func IssueLock(host string) string { return lockIssue + host }

// IssueOf is the host whose certificate is obtained under lock.
func IssueOf(lock string) (host string, ok bool) { return strings.CutPrefix(lock, lockIssue) }

// Guards tells whether who holds lock may write key: a host's certificate, key
// and challenges under the lock of its issue, the authority's accounts under
// that or their own.
func Guards(lock, key string) bool {
	part := strings.Split(key, "/")
	account := len(part) >= 3 && part[0] == "acme" && part[2] == "users"
	if host, ok := strings.CutPrefix(lock, lockIssue); ok {
		host = strings.Replace(strings.ToLower(host), "*", "wildcard_", 1)
		switch {
		case host == "":
			return false
		case len(part) >= 3 && part[0] == "certificates":
			return part[2] == host
		case len(part) == 4 && part[0] == "acme" && part[2] == "challenge_tokens":
			return part[3] == host+".json"
		}
		return account // one that the authority no longer knows is forgotten in the middle of an order
	}
	return account && (lock == lockAccount || strings.HasPrefix(lock, lockAccount+"_"))
}

// Metadata tells whether key is what is told beside a certificate: where it was
// obtained, and when to renew it.
func Metadata(key string) bool {
	return strings.HasPrefix(key, "certificates/") && strings.HasSuffix(key, ".json")
}
