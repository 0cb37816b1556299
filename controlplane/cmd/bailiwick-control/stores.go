package main

import (
	"flag"
	"strings"

	"bailiwick/controlplane"
)

// storeFlags are those that say where the catalog and the zone's store rest.
func storeFlags(flags *flag.FlagSet, s *controlplane.Stores) {
	flags.StringVar(&s.Engine, "store", controlplane.EngineRaft, "what holds the catalog and the zone's store, the same on all nodes and for ever: raft (the nodes themselves) or etcd; the ledger is raft's with either")
	for prefix, e := range map[string]*controlplane.Etcd{"etcd": &s.Zone, "etcd-catalog": &s.Catalog} {
		whose := "of the zone's etcd, which must stand in the zone"
		if e == &s.Catalog {
			whose = "of the catalog's etcd, shared by all zones; none of these with one zone: the zone's"
		}
		etcdFlags(flags, prefix, whose, "bailiwick/INSTALLATION/", e)
	}
}

// etcdFlags are how one etcd is reached.
func etcdFlags(flags *flag.FlagSet, prefix, whose, below string, e *controlplane.Etcd) {
	flags.Func(prefix+"-endpoints", "https://host:2379, comma separated, "+whose, func(text string) error {
		e.Endpoints = strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
		return nil
	})
	flags.StringVar(&e.CAFile, prefix+"-ca", "", "file with what its certificates are verified with; default: the system's")
	flags.StringVar(&e.CertFile, prefix+"-cert", "", "file with this node's certificate for it, read again at each connection")
	flags.StringVar(&e.KeyFile, prefix+"-key", "", "file with the key of that certificate")
	flags.StringVar(&e.Username, prefix+"-user", "", "user of it, if it asks for one")
	flags.StringVar(&e.PasswordFile, prefix+"-password-file", "", "file with that user's password")
	flags.StringVar(&e.Prefix, prefix+"-prefix", "", "of all keys in it, for ever; default: "+below)
}
