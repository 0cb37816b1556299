package certstore

import (
	"strings"

	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// What may rest here, by whose it is: names of keys are chosen by edges, and one that was taken over holds the locks of the
// hosts that it serves. What many edges write at once may go above by as many values.
const (
	MaxHostValues    = 64      // of a host: certificates, keys and challenges of all its authorities
	MaxHostBytes     = 1 << 20 // of them, keys included
	MaxAccountValues = 256     // of the zone: accounts at authorities
	MaxAccountBytes  = 4 << 20
	MaxZoneValues    = 60_000 // of the zone
	MaxZoneBytes     = 256 << 20
)

// ReasonFull is of kind Exhausted.
const ReasonFull = "CERT_STORE_FULL"

// accounts is the owner of what is no host's.
const accounts = "accounts"

// owner is whose a key is: a host, as keys have it, or accounts.
func owner(key string) string {
	part := strings.Split(key, "/")
	switch {
	case len(part) >= 3 && part[0] == "certificates":
		return "host " + part[2]
	case len(part) == 4 && part[0] == "acme" && part[2] == "challenge_tokens":
		return "host " + strings.TrimSuffix(part[3], ".json")
	}
	return accounts
}

// room says whether a value may come into being, or take the place of the one that is there.
func (s *Service) room(key string, value []byte) error {
	whose := owner(key)
	values, size, ofZone, sizeOfZone := 1, len(key)+len(value), 1, len(key)+len(value)
	for kv := range s.store.Local().List(model.PrefixCert) {
		name := strings.TrimPrefix(kv.Key, model.PrefixCert)
		if name == key {
			continue
		}
		n := len(name) + len(kv.Value)
		ofZone, sizeOfZone = ofZone+1, sizeOfZone+n
		if owner(name) == whose {
			values, size = values+1, size+n
		}
	}
	maxValues, maxSize := MaxHostValues, MaxHostBytes
	if whose == accounts {
		maxValues, maxSize = MaxAccountValues, MaxAccountBytes
	}
	if values > maxValues || size > maxSize {
		return fault.New(fault.Exhausted, ReasonFull, "certificates: %s would have %d values of %d bytes, at most %d of %d are kept: what is there of authorities that are no longer used must be deleted first", whose, values, size, maxValues, maxSize)
	}
	if ofZone > MaxZoneValues || sizeOfZone > MaxZoneBytes {
		return fault.New(fault.Exhausted, ReasonFull, "certificates: the zone would have %d values of %d bytes, at most %d of %d are kept", ofZone, sizeOfZone, MaxZoneValues, MaxZoneBytes)
	}
	return nil
}
