package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
)

// runEtcd is one member of a sandbox's etcd, in a process of its own so that it can be killed like any other. It is here
// to be written to and killed; the programs of the product link the client alone.
func runEtcd(ctx context.Context, args []string) error {
	cfg := embed.NewConfig()
	flags := flag.NewFlagSet("etcd", flag.ContinueOnError)
	flags.StringVar(&cfg.Name, "name", "", "name of the member")
	flags.StringVar(&cfg.Dir, "dir", "", "data directory")
	flags.StringVar(&cfg.InitialCluster, "cluster", "", "members, NAME=PEER-URL, comma separated")
	flags.StringVar(&cfg.InitialClusterToken, "token", "", "name of the cluster")
	client := flags.String("client", "", "URL for clients")
	peer := flags.String("peer", "", "URL for members")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if cfg.Name == "" || cfg.Dir == "" || cfg.InitialCluster == "" {
		return errors.New("etcd: -name, -dir and -cluster are required")
	}
	c, err := url.Parse(*client)
	if err != nil {
		return err
	}
	p, err := url.Parse(*peer)
	if err != nil {
		return err
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*c}, []url.URL{*c}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*p}, []url.URL{*p}
	cfg.LogLevel, cfg.LogOutputs = "error", []string{"stderr"} // its warnings are of a slow disk
	// History is thrown away early, so that the engine meets compaction here and not first in production.
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "revision", "1000"
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start etcd member %s: %w", cfg.Name, err)
	}
	defer e.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return fmt.Errorf("etcd member %s: %w", cfg.Name, err)
	case <-e.Server.StopNotify():
		return fmt.Errorf("etcd member %s stopped by itself", cfg.Name)
	}
}
