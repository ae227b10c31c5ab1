# Perl's Net::SMTP. Arguments: mode, job file.
use strict;
use warnings;
use JSON::PP;
use Net::SMTP;

my ($mode, $job) = ($ARGV[0], decode_json(slurp($ARGV[1])));

sub slurp {
    open my $file, '<:raw', $_[0] or die "$_[0]: $!";
    local $/;
    return scalar <$file>;
}

sub keep {
    open my $file, '>:raw', $_[0] or die "$_[0]: $!";
    print $file $_[1];
    close $file or die "$_[0]: $!";
}

sub connection {
    my $smtp;
    if ($mode eq 'plain') {
        $smtp = Net::SMTP->new('127.0.0.1', Port => 2525, Timeout => 30) or die "no connection: $@";
    } elsif ($mode eq 'starttls') {
        $smtp = Net::SMTP->new('relay.example.com', Port => 587, Timeout => 30) or die "no connection: $@";
        $smtp->starttls(SSL_ca_file => '/etc/ssl/mailramp-ca.pem') or die "no TLS: " . $smtp->message;
        $smtp->auth('app', $ENV{MAIL_PASSWORD}) or die "no login: " . $smtp->message;
    } else {
        $smtp = Net::SMTP->new('relay.example.com', Port => 465, Timeout => 30, SSL => 1, SSL_ca_file => '/etc/ssl/mailramp-ca.pem')
            or die "no connection: $@";
        $smtp->auth('app', $ENV{MAIL_PASSWORD}) or die "no login: " . $smtp->message;
    }
    return $smtp;
}

for my $mail (@{ $job->{mails} }) {
    my $kept = "$job->{folder}/$mail->{kind}";
    # Octets, not characters: Net::SMTP counts what it writes.
    utf8::encode($_) for @{ $mail->{to} }, @{ $mail->{cc} }, @{ $mail->{bcc} };
    eval {
        my $message = slurp($mail->{raw});
        my $smtp = connection();
        my %options = $mail->{kind} eq '8bit' ? (Bits => 8) : ();
        @options{qw(Return ENVID)} = ('HDRS', $mail->{envid}) if $mail->{dsn};
        my @notify = $mail->{dsn} ? ({ Notify => ['FAILURE', 'DELAY'] }) : ();
        $smtp->mail($mail->{from}, %options) or die "MAIL: " . $smtp->message;
        $smtp->to(@{ $mail->{to} }, @{ $mail->{cc} }, @{ $mail->{bcc} }, @notify) or die "RCPT: " . $smtp->message;
        $smtp->data($message) or die "DATA: " . $smtp->message;
        $smtp->quit;
        keep("$kept.eml", $message);
        1;
    } or keep("$kept.error", $@);
}
